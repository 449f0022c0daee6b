//! A consumer that goes on reading while others write.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    metadata::{MetadataPartition, MetadataTopic},
};

use super::{Broker, Message};
use crate::{DEADLINE, wait_until};

/// How long a question to the broker may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads topics, from their beginning or from what comes next.
pub struct Follower {
    consumer: BaseConsumer,
    partitions: Vec<(String, i32)>,
    read: AtomicU64,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

impl Follower {
    /// Begins to read topics that there are; what comes is there as soon as it comes.
    ///
    /// # Errors
    /// The broker does not answer, or has no such topic.
    pub fn new(broker: &Broker<'_>, topics: &[&str], from: Offset) -> Result<Self> {
        let mut config = broker.client();
        config.set("fetch.wait.max.ms", "100").set("fetch.min.bytes", "1");
        let consumer = config.create::<BaseConsumer>()?;
        let mut assignment = TopicPartitionList::new();
        let mut partitions = Vec::new();
        for topic in topics {
            // One that was just made is not known at once.
            let found = wait_until(&format!("a topic {topic}"), DEADLINE, || {
                let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).context("the broker's metadata")?;
                let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
                let found: Vec<_> = partitions.map(MetadataPartition::id).collect();
                Ok((!found.is_empty()).then_some(found))
            })?;
            for partition in found {
                assignment.add_partition_offset(topic, partition, from)?;
                // A broker that has just started, or a topic that was just made, has no leader at once.
                wait_until("the partition's leader", DEADLINE, || {
                    Ok(consumer.fetch_watermarks(topic, partition, PATIENCE).ok())
                })?;
                partitions.push(((*topic).to_owned(), partition));
            }
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer, partitions, read: AtomicU64::default() })
    }

    /// The next message; `None` when none comes within `limit`.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn next(&self, limit: Duration) -> Result<Option<Message>> {
        let deadline = Instant::now() + limit;
        loop {
            // It returns without a message also when it had something else to do.
            if let Some(message) = self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                let message = Message::new(&message.context("consuming")?);
                self.read.fetch_add(1, Relaxed);
                return Ok(Some(message));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// Messages that it has read.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Messages that the broker has and it has not read, where it has begun at the beginning.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn lag(&self) -> Result<u64> {
        let mut there = 0;
        for (topic, partition) in &self.partitions {
            let (low, high) = self.consumer.fetch_watermarks(topic, *partition, PATIENCE)?;
            there += high.abs_diff(low);
        }
        Ok(there.saturating_sub(self.read()))
    }

    /// Shows all messages that there are, one after the other, where it has begun at the beginning.
    ///
    /// # Errors
    /// They do not come, or `show` fails.
    pub fn drain(&self, mut show: impl FnMut(Message) -> Result<()>) -> Result<()> {
        for left in (1..=self.lag()?).rev() {
            show(self.next(DEADLINE)?.with_context(|| format!("{left} messages do not come"))?)?;
        }
        Ok(())
    }
}
