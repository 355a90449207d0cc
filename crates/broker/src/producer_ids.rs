//! Producer ids, in blocks from the controller: none is ever given out twice (`R42`).

use std::time::Duration;

use metadata::control::{ControlRequest, ControlResponse};
use model::{BrokerEpoch, ErrorCode, ProducerId};
use tokio::sync::Mutex;

use crate::api::ControlUnavailable;
use crate::context::Context;

/// How long the controller may take for a block.
const BLOCK_WAIT: Duration = Duration::from_secs(5);

/// Producer ids that were given to this broker and are not used yet.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    block: Mutex<Block>,
}

#[derive(Debug, Default)]
struct Block {
    next: i64,
    end: i64,
}

impl ProducerIds {
    /// The next one.
    ///
    /// # Errors
    /// Where a new block is needed and the controller gives none.
    pub(crate) async fn next(&self, context: &Context) -> Result<ProducerId, ControlUnavailable> {
        let mut block = self.block.lock().await;
        if block.next >= block.end {
            *block = allocate(context).await?;
        }
        block.next += 1;
        Ok(ProducerId(block.next - 1))
    }
}

async fn allocate(context: &Context) -> Result<Block, ControlUnavailable> {
    let epoch = context.registration().map_or(BrokerEpoch::NONE, |(epoch, _)| epoch);
    let request = ControlRequest::AllocateProducerIds { broker: context.config.broker_id, epoch };
    match context.ask(request, BLOCK_WAIT).await {
        Ok(ControlResponse::AllocateProducerIds { first, len }) => {
            Ok(Block { next: first.0, end: first.0 + i64::from(len) })
        }
        Ok(ControlResponse::Refused(error)) => Err(ControlUnavailable { error: error.code, message: error.message }),
        Ok(other) => {
            let message = format!("an answer to another question: {other:?}");
            Err(ControlUnavailable { error: ErrorCode::UnknownServerError, message })
        }
        Err(error) => Err(ControlUnavailable { error: ErrorCode::RequestTimedOut, message: error.to_string() }),
    }
}
