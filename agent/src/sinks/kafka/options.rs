//! Options of librdkafka by their own names: which of them may not be given, and why.

use rdkafka::{ClientConfig, error::KafkaError};

use super::config::Settings;
use crate::sinks::config::InvalidSetting;

/// What is wrong with the options of a sink.
pub(super) fn problem(settings: &Settings) -> Option<InvalidSetting> {
    let problem = |(name, value): (&String, &String)| {
        secret(name)
            .map(|remedy| format!("must not have `{name}`, which `config show` would print: {remedy}"))
            .or_else(|| broken(name, value).map(|why| format!("must not have `{name}: {value}`: {why}")))
            .or_else(|| refused(name, value).map(|why| format!("has `{name}`, which librdkafka does not take: {why}")))
    };
    let problems: Vec<_> = settings.options.iter().filter_map(problem).collect();
    (!problems.is_empty()).then(|| InvalidSetting { option: "options", problem: problems.join("; and ") })
}

/// What to do instead with an option that holds a secret.
fn secret(name: &str) -> Option<&'static str> {
    match name {
        "sasl.password" => Some("name the file with the password in `sasl.password_file`"),
        "ssl.key.pem" => Some("name the file with the key in `tls.key_file`"),
        "ssl.key.password" | "ssl.keystore.password" => {
            Some("keep the key without a password in a file that only the agent can read, named in `tls.key_file`")
        }
        "sasl.oauthbearer.config" | "sasl.oauthbearer.client.secret" => {
            Some("OAUTHBEARER is not supported, see `sasl`")
        }
        _ => None,
    }
}

/// What of the sink's promise does not hold with an option: each line arrives at least once, those of a stream in order,
/// and over the connections that the sink's own options say.
fn broken(name: &str, value: &str) -> Option<&'static str> {
    let is_true = || matches!(value, "true" | "t" | "1");
    match name {
        "acks" | "request.required.acks" if !matches!(value, "all" | "-1") => Some(
            "a line would count as delivered that not every replica in sync has; only `all` keeps what it promises",
        ),
        "enable.idempotence" if !is_true() => {
            Some("lines would change their order, and come twice, when one is sent again")
        }
        "max.in.flight" | "max.in.flight.requests.per.connection"
            if value.parse::<u32>().is_ok_and(|count| count > 5) =>
        {
            Some("with more than 5 requests at once brokers can't keep their order")
        }
        "partitioner" if value == "random" => Some("the lines of a stream would not stay in one partition, in order"),
        "delivery.report.only.error" if is_true() => Some("the sink would not hear that a line is delivered"),
        "statistics.interval.ms" if value.parse::<u32>().is_ok_and(|interval| interval == 0 || interval > 60_000) => {
            Some(
                "the sink would not notice in time that librdkafka has lost the brokers, and would have old figures; at most 60000",
            )
        }
        "transactional.id" | "test.mock.num.brokers" => Some("the sink's lines would not arrive"),
        "bootstrap.servers" | "metadata.broker.list" => Some("that is said by `brokers`"),
        "retries" | "message.send.max.retries" if value == "0" => {
            Some("lines that are not acknowledged have to be sent again")
        }
        "enable.ssl.certificate.verification" if !is_true() => {
            Some("anybody could be the broker; name the authority in `tls.ca_file`")
        }
        "security.protocol"
        | "sasl.mechanism"
        | "sasl.mechanisms"
        | "sasl.username"
        | "ssl.ca.location"
        | "ssl.certificate.location"
        | "ssl.key.location"
        | "ssl.endpoint.identification.algorithm" => Some("that is said by `tls` and `sasl`"),
        _ => None,
    }
}

/// Why librdkafka refuses an option, or its value.
fn refused(name: &str, value: &str) -> Option<String> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(_, why, ..)) => Some(why),
        Err(other) => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, value: &str) -> Option<String> {
        let settings = Settings { options: [(name.to_owned(), value.to_owned())].into(), ..Settings::default() };
        problem(&settings).map(|problem| problem.problem)
    }

    #[test]
    fn options_that_librdkafka_takes_pass() {
        for (name, value) in [
            ("socket.keepalive.enable", "true"),
            ("compression.level", "3"),
            ("acks", "all"),
            ("acks", "-1"),
            ("enable.idempotence", "true"),
            ("max.in.flight", "1"),
            ("message.timeout.ms", "600000"),
            ("partitioner", "murmur2"),
        ] {
            assert_eq!(found(name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn what_would_break_the_promise_or_show_a_secret_or_is_none_is_refused() {
        for (name, value, part) in [
            ("acks", "1", "only `all` keeps"),
            ("acks", "0", "only `all` keeps"),
            ("request.required.acks", "1", "only `all` keeps"),
            ("enable.idempotence", "false", "change their order"),
            ("max.in.flight.requests.per.connection", "6", "more than 5"),
            ("partitioner", "random", "in one partition"),
            ("delivery.report.only.error", "true", "would not hear"),
            ("statistics.interval.ms", "0", "would not notice"),
            ("statistics.interval.ms", "3600000", "at most 60000"),
            ("test.mock.num.brokers", "3", "would not arrive"),
            ("security.protocol", "plaintext", "`tls` and `sasl`"),
            ("sasl.username", "eve", "`tls` and `sasl`"),
            ("ssl.ca.location", "/ca.pem", "`tls` and `sasl`"),
            ("enable.ssl.certificate.verification", "false", "`tls.ca_file`"),
            ("retries", "0", "sent again"),
            ("sasl.password", "hunter2", "`sasl.password_file`"),
            ("ssl.key.password", "hunter2", "`tls.key_file`"),
            ("ssl.key.pem", "hunter2", "`tls.key_file`"),
            ("socket.keepalives", "true", "No such configuration property"),
            ("socket.keepalive.enable", "maybe", "socket.keepalive.enable"),
            ("compression.level", "many", "compression.level"),
            ("compression.level", "99", "compression.level"),
        ] {
            let problem = found(name, value).unwrap_or_else(|| panic!("{name}: {value} passes"));
            assert!(problem.contains(part) && problem.contains(&format!("`{name}")), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
