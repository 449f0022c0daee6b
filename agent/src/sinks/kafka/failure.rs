//! What goes wrong with a message or a connection, and what to do about it.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::ledger::Reason;

/// What becomes of a message that was not acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// Sent again at once.
    Again,
    /// Held with all others of its topic, and sent again later.
    Hold,
    /// Given up, for this reason.
    GiveUp(Reason),
}

/// Decides on a message that came back with an error.
pub(super) const fn fate(code: Code) -> Fate {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Fate::GiveUp(Reason::Oversize),
        Code::InvalidRecord | Code::PolicyViolation | Code::InvalidTimestamp => Fate::GiveUp(Reason::Rejected),
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed => Fate::Hold,
        _ => Fate::Again,
    }
}

/// What the operator can do about an error; empty when time will tell.
pub(super) const fn remedy(code: Code) -> &'static str {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
            "raise `max_message_bytes` here and `max.message.bytes` of the topic, or lower `lines.max_line_bytes`"
        }
        Code::InvalidRecord | Code::InvalidTimestamp => "the topic does not take such messages: see its configuration",
        Code::PolicyViolation => "a policy of the cluster forbids it",
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            "create the topic, or let brokers create topics (`auto.create.topics.enable`)"
        }
        Code::InvalidTopic => "the name is no topic's: mend the template `topic`",
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            "give the agent's user the right to write the topic (and IdempotentWrite on the cluster, before Kafka 2.8)"
        }
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "see `sasl.username`, `sasl.password_file` and `sasl.mechanism`"
        }
        Code::SSL => "see `tls`: the authority in `ca_file`, and that the certificate is valid and names the broker",
        Code::Resolve => "no such host: see `brokers`",
        Code::BrokerTransportFailure | Code::AllBrokersDown => {
            "see `brokers`, that they run, that they are reachable, and whether they expect TLS"
        }
        _ => "",
    }
}
