//! Connections to other brokers for what is asked about transactions and of lag, made when they are needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::{BrokerEpoch, BrokerId};
use rpc::lag::LagClient;
use rpc::transactions::TransactionClient;

use crate::context::Context;

/// See the module.
#[derive(Debug)]
pub(crate) struct Peers {
    context: Arc<Context>,
    clients: Mutex<BTreeMap<BrokerId, Clients>>,
}

#[derive(Clone, Debug)]
struct Clients {
    /// The registration that they reach.
    epoch: BrokerEpoch,
    transactions: TransactionClient,
    lags: LagClient,
}

impl Peers {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Peers> {
        Arc::new(Peers { context, clients: Mutex::default() })
    }

    /// The way to a broker as it is registered now, for what concerns transactions; None where it is not.
    pub(crate) fn client(&self, broker: BrokerId) -> Option<TransactionClient> {
        Some(self.clients(broker)?.transactions)
    }

    /// The same, for what concerns lag.
    pub(crate) fn lags(&self, broker: BrokerId) -> Option<LagClient> {
        Some(self.clients(broker)?.lags)
    }

    fn clients(&self, broker: BrokerId) -> Option<Clients> {
        let (address, epoch) = self.context.internal_address(broker)?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(&broker).filter(|known| known.epoch == epoch) {
            return Some(known.clone());
        }
        let network = &self.context.network;
        // Neither dials before its first call.
        let (transactions, lags) = (TransactionClient::new(network, &address), LagClient::new(network, &address));
        let made = Clients { epoch, transactions: transactions.ok()?, lags: lags.ok()? };
        clients.insert(broker, made.clone());
        Some(made)
    }
}
