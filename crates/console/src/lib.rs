//! The HTTP port: Prometheus metrics, health, and the cluster's state as JSON.
//!
//! What it shows comes from a [`Source`], so that this crate decides nothing: `/metrics`, `/health/live`, `/health/ready`,
//! `/api/status`, `/api/groups`.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows; shown with the suffix `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One value of a metric, with its labels.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Name and value of each label.
    pub labels: Vec<(&'static str, String)>,
    /// The value, in the unit that the metric's name says.
    pub value: f64,
}

/// A metric with all its values.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// Its name, with the unit last.
    pub name: String,
    /// One sentence for people.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its values.
    pub samples: Vec<Sample>,
}

impl Family {
    /// A metric with one value and no labels.
    #[must_use]
    pub fn single(name: &str, help: &'static str, kind: Kind, value: f64) -> Family {
        Family { name: name.to_owned(), help, kind, samples: vec![Sample { labels: Vec::new(), value }] }
    }
}

/// How the values of something are spread, for one set of labels.
#[derive(Clone, PartialEq, Debug)]
pub struct Spread {
    /// Name and value of each label.
    pub labels: Vec<(&'static str, String)>,
    /// The upper bound of each bucket, ascending, the last one infinite, and how many values are in that bucket alone.
    pub buckets: Vec<(f64, u64)>,
    /// All values together.
    pub sum: f64,
}

/// A metric whose values are counted in buckets.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram {
    /// Its name, with the unit last.
    pub name: String,
    /// One sentence for people.
    pub help: &'static str,
    /// Its values.
    pub spreads: Vec<Spread>,
}

/// What the port shows.
pub trait Source: Send + Sync + 'static {
    /// Why the node does not serve yet, or no longer; None while it does.
    fn unready(&self) -> Option<String>;
    /// Asks for what others have to be asked for; before `metrics` and `groups`, which show it.
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
    /// All metrics, now.
    fn metrics(&self) -> Vec<Family>;
    /// All metrics that are counted in buckets, now.
    fn histograms(&self) -> Vec<Histogram> {
        Vec::new()
    }
    /// The node's and the cluster's state.
    fn status(&self) -> serde_json::Value;
    /// The groups that are coordinated here, with their lag.
    fn groups(&self) -> serde_json::Value {
        serde_json::json!({ "groups": [] })
    }
}

/// Serves until `stop` completes.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn Source>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(Arc::clone(&source))));
    let state = Arc::new(Port { source, registry });
    let router = axum::Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/api/status", get(status))
        .route("/api/groups", get(groups))
        .with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

struct Port {
    source: Arc<dyn Source>,
    registry: Registry,
}

async fn ready(State(port): State<Arc<Port>>) -> Response {
    match port.source.unready() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn status(State(port): State<Arc<Port>>) -> Response {
    axum::Json(port.source.status()).into_response()
}

async fn groups(State(port): State<Arc<Port>>) -> Response {
    port.source.refresh().await;
    axum::Json(port.source.groups()).into_response()
}

async fn metrics(State(port): State<Arc<Port>>) -> Response {
    port.source.refresh().await;
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &port.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

struct Collected(Arc<dyn Source>);

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collected")
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.0.metrics() {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(&family.name, family.help, None, kind)?;
            for sample in &family.samples {
                if sample.labels.is_empty() {
                    encode_value(&mut metric, family.kind, sample.value)?;
                } else {
                    encode_value(&mut metric.encode_family(&sample.labels)?, family.kind, sample.value)?;
                }
            }
        }
        for histogram in self.0.histograms() {
            let mut metric = encoder.encode_descriptor(&histogram.name, histogram.help, None, MetricType::Histogram)?;
            for spread in &histogram.spreads {
                let count = spread.buckets.iter().map(|(_, count)| count).sum();
                let mut family = metric.encode_family(&spread.labels)?;
                family.encode_histogram::<[(&str, &str); 0]>(spread.sum, count, &spread.buckets, None)?;
            }
        }
        Ok(())
    }
}

fn encode_value(encoder: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> fmt::Result {
    match kind {
        Kind::Counter => encoder.encode_counter::<[(&str, &str); 0], _, u64>(&value, None),
        Kind::Gauge => encoder.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fake {
        ready: AtomicBool,
    }

    impl Source for Fake {
        fn unready(&self) -> Option<String> {
            (!self.ready.load(Ordering::Relaxed)).then(|| "still loading".to_owned())
        }

        fn metrics(&self) -> Vec<Family> {
            let labels = vec![("request", "Produce".to_owned())];
            vec![
                Family::single("kafka_server_replicamanager_partitioncount", "Partitions here", Kind::Gauge, 3.0),
                Family {
                    name: "kafka_network_requestmetrics_requests".to_owned(),
                    help: "Requests",
                    kind: Kind::Counter,
                    samples: vec![Sample { labels, value: 7.0 }],
                },
            ]
        }

        fn histograms(&self) -> Vec<Histogram> {
            let labels = vec![("request", "Fetch".to_owned())];
            vec![Histogram {
                name: "kafka_network_requestmetrics_totaltimems".to_owned(),
                help: "Latencies",
                spreads: vec![Spread { labels, buckets: vec![(0.5, 2), (1.0, 3), (f64::INFINITY, 1)], sum: 9.5 }],
            }]
        }

        fn status(&self) -> serde_json::Value {
            serde_json::json!({ "nodes": [] })
        }
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_health_and_status_are_served() {
        let source = Arc::new(Fake { ready: AtomicBool::new(false) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served: Arc<dyn Source> = Arc::<Fake>::clone(&source);
        tokio::spawn(serve(listener, served, std::future::pending()));
        assert!(ask(address, "/health/live").await.starts_with("HTTP/1.1 200"));
        let unready = ask(address, "/health/ready").await;
        assert!(unready.starts_with("HTTP/1.1 503") && unready.contains("still loading"), "{unready}");
        source.ready.store(true, Ordering::Relaxed);
        assert!(ask(address, "/health/ready").await.starts_with("HTTP/1.1 200"));
        let metrics = ask(address, "/metrics").await;
        assert!(metrics.contains("kafka_server_replicamanager_partitioncount 3.0\n"), "{metrics}");
        assert!(
            metrics.contains("kafka_network_requestmetrics_requests_total{request=\"Produce\"} 7.0\n"),
            "{metrics}"
        );
        for line in [
            "# TYPE kafka_network_requestmetrics_totaltimems histogram\n",
            "kafka_network_requestmetrics_totaltimems_sum{request=\"Fetch\"} 9.5\n",
            "kafka_network_requestmetrics_totaltimems_count{request=\"Fetch\"} 6\n",
            "kafka_network_requestmetrics_totaltimems_bucket{le=\"1.0\",request=\"Fetch\"} 5\n",
            "kafka_network_requestmetrics_totaltimems_bucket{le=\"+Inf\",request=\"Fetch\"} 6\n",
        ] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
        assert!(ask(address, "/api/status").await.contains("\"nodes\""));
        assert!(ask(address, "/api/groups").await.contains("\"groups\""));
    }
}
