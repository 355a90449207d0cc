//! Watches the free space of the log directory, and says why writes are refused or go on again (`R30`).
//!
//! Below the reserve the logs refuse appends by themselves; what is left to do here is to look, to tell, and to have the
//! controller hand this broker's leaderships to replicas that have space.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;

/// Between two looks; appends between them are counted.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Runs until the broker stops.
pub(crate) async fn watch(context: Arc<Context>) {
    let mut full = false;
    loop {
        let job_context = Arc::clone(&context);
        context.disk_pool.run(move || job_context.data.watch_space()).await;
        // A fast writer may have reached the reserve between two looks.
        if context.data.env().health().is_full() != full {
            full = !full;
            tell(&context, full);
            context.heartbeat_wanted.notify_one();
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn tell(context: &Context, full: bool) {
    let space = context.data.env().health().space();
    let directory = context.data.path().display();
    let (available, reserve) = (space.available, space.reserve);
    if full {
        tracing::error!(
            %directory, available, reserve,
            "less space is free than ottla.disk.reserve.bytes keeps: writes are refused here, reads go on; free some space"
        );
    } else {
        tracing::info!(%directory, available, reserve, "there is space again: writes are taken");
    }
}
