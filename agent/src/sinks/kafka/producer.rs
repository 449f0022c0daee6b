//! The producer: made of the settings, taken apart, made anew.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use rdkafka::{
    config::FromClientConfigAndContext as _,
    error::KafkaError,
    producer::{Producer as _, PurgeConfig, ThreadedProducer},
};

use super::{certificate, config::Settings, context::Context, sink::error};
use crate::sinks::{SinkError, http_client::tls};

/// How long librdkafka may need to give back what it has.
const PURGE: Duration = Duration::from_secs(10);

/// librdkafka's producer with a thread that hears of the acknowledgements.
pub(super) type Producer = ThreadedProducer<Context>;

/// librdkafka's own limit of a batch, in bytes.
pub(super) const BATCH_SIZE: usize = 1_000_000;

/// Makes a producer; it connects on its own.
pub(super) fn make(settings: &Settings, batch_size: usize) -> Result<Producer, SinkError> {
    let mut config = settings.client()?;
    if batch_size != BATCH_SIZE || config.get("batch.size").is_none() {
        config.set("batch.size", batch_size.to_string());
    }
    let batch_size = config.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(batch_size);
    ThreadedProducer::from_config_and_context(&config, Context::new(batch_size))
        .map_err(|cause| explain(settings, &cause))
}

/// Why there is no producer. librdkafka names neither our options nor, of all files, the one that is wrong.
fn explain(settings: &Settings, cause: &KafkaError) -> SinkError {
    let unreadable = settings.files().find_map(|file| file.read().err()).map(SinkError::of_file);
    let unusable = || settings.tls.as_ref().and_then(|tls| tls::config(tls).err());
    unreadable
        .or_else(unusable)
        .unwrap_or_else(|| error(format!("making the producer: {cause}; see the options of this sink")))
}

/// Lets every message of a producer come back that is not acknowledged, also what is just being sent: whoever sends it
/// again may send it twice.
pub(super) fn take_apart(producer: &Producer) {
    producer.purge(PurgeConfig::default().queue().inflight());
    // It waits for nobody but the threads of this process.
    if let Err(cause) = producer.flush(PURGE) {
        tracing::error!(%cause, left = producer.in_flight_count(), "librdkafka keeps lines to itself: they are dropped");
    }
}

/// Finds out why a broker's certificate is not accepted, if that is what is wrong.
pub(super) fn examine(context: &Context, settings: &Settings) {
    let Some((tls, address)) = settings.tls.as_ref().zip(context.take_unverified()) else { return };
    if let Some(fault) = certificate::fault(&address, tls) {
        context.note_fault(address, fault);
    }
}

/// Stands for what is in the files that say who the agent is: it changes when one of them is written anew.
pub(super) fn credentials(settings: &Settings) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in settings.files() {
        // One that can't be read is told of when a producer is made of it.
        file.read().unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}

/// Asks the brokers who they are.
///
/// # Errors
/// The options can't be used, or no broker answers within three seconds, and why.
pub fn reach(settings: &Settings) -> Result<String, SinkError> {
    let producer = make(settings, BATCH_SIZE)?;
    match producer.client().fetch_metadata(None, Duration::from_secs(3)) {
        Ok(metadata) => Ok(format!("a cluster of {} brokers answers", metadata.brokers().len())),
        Err(cause) => {
            let context = producer.client().context();
            examine(context, settings);
            let why = context.failing().unwrap_or_else(|| cause.to_string());
            Err(error(format!("{}: {why}", settings.brokers.join(", "))))
        }
    }
}
