//! A consumer that goes on reading while others write.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{Broker, Message, PARTITIONS};
use crate::{DEADLINE, wait_until};

/// How long a question to the broker may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads topics from their beginning.
pub struct Reader {
    consumer: BaseConsumer,
    topics: Vec<String>,
    read: u64,
}

impl Reader {
    /// Makes the topics, and begins to read them.
    ///
    /// # Errors
    /// The broker does not make them.
    pub fn new(broker: &Broker<'_>, topics: &[&str]) -> Result<Self> {
        let consumer = broker.client().create::<BaseConsumer>()?;
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            broker.create_topic(topic)?;
            for partition in 0..PARTITIONS.try_into()? {
                assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
                // A topic that was just made has no leader at once.
                wait_until("the partition's leader", DEADLINE, || {
                    Ok(consumer.fetch_watermarks(topic, partition, PATIENCE).ok())
                })?;
            }
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer, topics: topics.iter().map(|topic| (*topic).to_owned()).collect(), read: 0 })
    }

    /// The messages that have come since the last call.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn poll(&mut self) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        while let Some(message) = self.consumer.poll(Duration::ZERO) {
            messages.push(Message::new(&message.context("consuming")?));
        }
        self.read += messages.len() as u64;
        Ok(messages)
    }

    /// Messages that it has read.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Messages that the broker has and it has not read.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn lag(&self) -> Result<u64> {
        let mut there = 0;
        for topic in &self.topics {
            for partition in 0..PARTITIONS.try_into()? {
                let (low, high) = self.consumer.fetch_watermarks(topic, partition, PATIENCE)?;
                there += u64::try_from(high - low)?;
            }
        }
        Ok(there.saturating_sub(self.read))
    }
}
