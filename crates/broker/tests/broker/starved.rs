//! Brokers that are taken for dead, or do not know that they are: one whose serving threads get nowhere, one that is cut off
//! (`R76`).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use broker::api::Acks;
use model::{BrokerId, ErrorCode};
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
