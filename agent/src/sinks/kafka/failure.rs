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

/// What the text of an error tells beside its code, and what the operator can do about that.
const HINTS: [(&str, &str); 6] = [
    ("alert certificate expired", "renew the agent's certificate in `tls.cert_file`"),
    (
        "alert unknown ca",
        "the brokers do not know the authority that signed the agent's certificate in `tls.cert_file`",
    ),
    ("alert bad certificate", WANTS_CERTIFICATE),
    ("alert certificate required", WANTS_CERTIFICATE),
    ("connecting to a PLAINTEXT broker", NO_TLS),
    ("wrong version number", NO_TLS),
];

const WANTS_CERTIFICATE: &str = "the brokers want a certificate of the agent: see `tls.cert_file` and `tls.key_file`";
const NO_TLS: &str = "the broker knows no TLS at this port: leave `tls` out, or name the port for TLS in `brokers`";

/// What the operator can do about an error that comes with a text; empty when time will tell.
pub(super) fn remedy_of(code: Code, text: &str) -> &'static str {
    let hint = HINTS.iter().find(|(part, _)| text.contains(part));
    hint.map_or_else(|| remedy(code), |(_, remedy)| remedy)
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
