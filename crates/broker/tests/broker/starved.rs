//! Brokers that are taken for dead, or do not know that they are: one whose serving threads get nowhere, one that is cut off
//! (`R76`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use broker::OwnController;
use broker::api::Acks;
use metadata::ControlRequest;
use model::{BrokerEpoch, BrokerId, ErrorCode};
use storage::disk::Crash;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::cluster::*;

fn one_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Whether a broker is fenced within two seconds in which the thread that serves requests does nothing. Its peers report it,
/// and it answers no probe.
async fn is_fenced_while_it_serves_nothing(control: Option<Handle>) -> bool {
    let mut cluster = Cluster::start(2, 1).await;
    let serving = one_thread();
    (cluster.control, cluster.serving) = (control, Some(serving.handle().clone()));
    cluster.start_broker(3).await;
    // As a processor does that others have, or a disk that lets no write through: this is the fault itself.
    serving.spawn(async { std::thread::sleep(Duration::from_millis(2_500)) });
    let begun = Instant::now();
    let mut fenced = false;
    while begun.elapsed() < Duration::from_secs(2) && !fenced {
        tokio::time::sleep(Duration::from_millis(20)).await;
        fenced = cluster.controller.image().broker(BrokerId(3)).unwrap().fenced;
    }
    assert!(cluster.controller.unanswered_probes() > 0, "nobody suspected it");
    drop(cluster);
    serving.shutdown_background();
    fenced
}

#[tokio::test]
async fn a_broker_that_serves_nothing_for_a_while_but_lives_is_not_fenced() {
    // R76
    let control = one_thread();
    assert!(!is_fenced_while_it_serves_nothing(Some(control.handle().clone())).await);
    control.shutdown_background();
}

#[tokio::test]
async fn a_broker_without_a_thread_that_lives_is_fenced() {
    // R76: what the test before would look like without a control thread.
    assert!(is_fenced_while_it_serves_nothing(None).await);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_does_not_keep_its_producers_waiting() {
    // R20, R76: another broker leads by then, and clients look for it only when they are told to.
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.controller.hold_metadata(true);
    cluster.controller.refuses.store(true, Ordering::Relaxed);
    cluster.kill(2, Crash::LoseUnsynced).await;
    let begun = Instant::now();
    let produced = soon("an answer", produce(cluster.broker(1), id, Acks::All, batch(&["b"]))).await;
    assert_eq!(produced.error, ErrorCode::NotLeaderOrFollower, "after {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(1), "it may have been a moment without a controller");
    // The record stays, and counts once its broker does again.
    assert_eq!(cluster.log_end(1, id), 2);
}

/// Hears its own broker while it is told to.
#[derive(Debug)]
struct Own {
    controller: Arc<Controller>,
    listens: AtomicBool,
    heard: AtomicUsize,
}

impl OwnController for Own {
    fn hear(&self, broker: BrokerId, epoch: BrokerEpoch) -> bool {
        let listens = self.listens.load(Ordering::Relaxed);
        if listens {
            self.heard.fetch_add(1, Ordering::Relaxed);
            self.controller.ask(&ControlRequest::Alive { broker, epoch });
        }
        listens
    }
}

#[tokio::test]
async fn a_broker_tells_the_controller_of_its_process_that_it_lives_and_any_other_over_a_connection() {
    // R76
    let mut cluster = Cluster::start(1, 1).await;
    let controller = Arc::clone(&cluster.controller);
    let own = Arc::new(Own { controller, listens: AtomicBool::new(true), heard: AtomicUsize::new(0) });
    cluster.kill(1, Crash::KeepAll).await;
    cluster.own_controller = Some(Arc::clone(&own) as _);
    cluster.start_broker(1).await;
    let signs = || cluster.controller.signs_of(BrokerId(1));
    let before = signs();
    eventually("five signs of life", || (own.heard.load(Ordering::Relaxed) >= 5).then_some(())).await;
    assert_eq!(signs(), before, "they come over a connection, too");
    // Another one is the active controller now.
    own.listens.store(false, Ordering::Relaxed);
    eventually("five over a connection", || (signs() >= before + 5).then_some(())).await;
}
