//! Connections to other brokers for what is asked about transactions: one each, made when it is needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::{BrokerEpoch, BrokerId};
use rpc::transactions::TransactionClient;

use crate::context::Context;

/// See the module.
#[derive(Debug)]
pub(crate) struct Peers {
    context: Arc<Context>,
    clients: Mutex<BTreeMap<BrokerId, (BrokerEpoch, TransactionClient)>>,
}

impl Peers {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Peers> {
        Arc::new(Peers { context, clients: Mutex::default() })
    }

    /// The way to a broker as it is registered now; None where it is not.
    pub(crate) fn client(&self, broker: BrokerId) -> Option<TransactionClient> {
        let (address, epoch) = self.context.internal_address(broker)?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(&broker)
            && *known == epoch
        {
            return Some(client.clone());
        }
        let client = TransactionClient::new(&self.context.network, &address).ok()?;
        clients.insert(broker, (epoch, client.clone()));
        Some(client)
    }
}
