//! ListTransactions: the transactional ids coordinated here, through filters.

use broker::api::BrokerApi;
use broker::coordinator::transaction::request::{self, ListedTransaction};
use broker::coordinator::transaction::{Status, TransactionRequest, TransactionResponse};
use model::{ErrorCode, ProducerId};
use protocol::messages::list_transactions_response::TransactionState;
use protocol::messages::{ListTransactionsRequest, ListTransactionsResponse};
use regex::Regex;

use crate::call::Call;
use crate::handlers::transactional::ask;
use crate::refusal::Refusal;

/// States that Kafka names and that are never seen: no id is in one for as long as a request takes.
const UNSEEN_STATES: [&str; 2] = ["Dead", "PrepareEpochFence"];
/// The size that an expression may have once it is compiled.
const EXPRESSION_BYTES: usize = 1 << 20;

/// Asks all coordinators here.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: ListTransactionsRequest) -> ListTransactionsResponse {
    let pattern = match compile(request.transactional_id_pattern.as_deref()) {
        Ok(pattern) => pattern,
        Err(error) => return ListTransactionsResponse { error_code: error.code(), ..Default::default() },
    };
    let known = |name: &String| Status::ALL.iter().any(|(_, _, known)| known == name);
    let unseen = |name: &String| UNSEEN_STATES.contains(&name.as_str());
    let unknown_state_filters: Vec<String> =
        request.state_filters.iter().filter(|name| !known(name) && !unseen(name)).cloned().collect();
    let list = request::ListTransactionsRequest {
        states: request.state_filters,
        producer_ids: request.producer_id_filters.into_iter().map(ProducerId).collect(),
        open_longer_than_ms: request.duration_filter,
    };
    let listed = match ask(&call, TransactionRequest::List(list)).await {
        Ok(TransactionResponse::List(listed)) if listed.error == ErrorCode::None => Ok(listed.transactions),
        Ok(TransactionResponse::List(listed)) => Err(Refusal::Broker(listed.error)),
        Ok(_) => Err(Refusal::Unanswered),
        Err(refusal) => Err(refusal),
    };
    let passes =
        |listed: &ListedTransaction| pattern.as_ref().is_none_or(|pattern| pattern.is_match(&listed.transactional_id));
    let (error_code, transactions) = match listed {
        Ok(transactions) => (0, transactions.into_iter().filter(passes).map(state).collect()),
        Err(refusal) => (refusal.wire(), Vec::new()),
    };
    ListTransactionsResponse {
        error_code,
        unknown_state_filters,
        transaction_states: transactions,
        ..Default::default()
    }
}

/// The whole id must match.
fn compile(pattern: Option<&str>) -> Result<Option<Regex>, ErrorCode> {
    let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
    let build = |text: &str| regex::RegexBuilder::new(text).size_limit(EXPRESSION_BYTES).build();
    // Alone first: "a)(b" must not become valid between our parentheses.
    let built = build(pattern).and_then(|_| build(&format!("^(?:{pattern})$")));
    built.map(Some).map_err(|_| ErrorCode::InvalidRegularExpression)
}

fn state(listed: ListedTransaction) -> TransactionState {
    TransactionState {
        transactional_id: listed.transactional_id,
        producer_id: listed.producer_id.0,
        transaction_state: listed.state.to_owned(),
    }
}
