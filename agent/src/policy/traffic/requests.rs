//! Limits of HTTP requests as the kernel programs have them.

use std::{fmt::Write, sync::Arc};

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{
    Deserialize,
    de::{IntoDeserializer, value::StrDeserializer},
};
use sidestep_abi::{
    govern::LIMIT_REQUESTS,
    http::{
        HttpRule, MAX_ANSWER, MAX_PATH, METHOD_DELETE, METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_PATCH,
        METHOD_POST, METHOD_PUT,
    },
};

use super::{
    compile::{Name, Refuser, Tier},
    limit::rate,
    settings::{Header, Method, RequestLimit},
};

/// What is sent to a client that is limited.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Answer {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Bytes of the head.
    pub head_len: usize,
}

/// A limit of a Pod's requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// What matches it, and how many; without the number of its answer.
    pub kernel: HttpRule,
    /// What is answered.
    pub answer: Arc<Answer>,
    /// Its name in the policy.
    pub name: Option<String>,
    /// Whose it is.
    pub policy: Name,
}

impl Rule {
    /// It, as who refuses something.
    #[must_use]
    pub fn refuser(&self) -> Refuser {
        Refuser { policies: vec![self.policy.to_string()], rule: self.name.clone() }
    }
}

/// The limits of a policy, in its order.
pub fn rules<'a>(
    limits: &'a [RequestLimit],
    policy: &'a Name,
    tier: Tier,
    workload: Option<u64>,
) -> impl Iterator<Item = Rule> + 'a {
    // They were checked when the policy was read.
    limits.iter().filter_map(move |limit| {
        Some(Rule {
            kernel: kernel(limit, state(limit.name.as_deref(), policy, tier), workload),
            answer: Arc::new(answer(limit).ok()?),
            name: limit.name.clone(),
            policy: policy.clone(),
        })
    })
}

/// The number of a limit's state: the same as long as the limit is, whatever agent and whatever generation. A name can be chosen so
/// that the number is another limit's, of the same tier only.
fn state(name: Option<&str>, policy: &Name, tier: Tier) -> u32 {
    let tier = Tier::ALL.iter().position(|other| *other == tier).unwrap_or_default() as u32;
    let hash = crc32fast::hash(format!("{policy} {}", name.unwrap_or_default()).as_bytes());
    LIMIT_REQUESTS | tier << TIER_SHIFT | hash & ((1 << TIER_SHIFT) - 1)
}

/// Where the tier stands in the number.
const TIER_SHIFT: u32 = 29;

fn kernel(limit: &RequestLimit, state: u32, workload: Option<u64>) -> HttpRule {
    let prefix = limit.matches.path_prefix.as_deref().unwrap_or_default().as_bytes();
    let (mut path, mut mask) = ([0; MAX_PATH], [0; MAX_PATH]);
    let len = prefix.len().min(MAX_PATH);
    path[..len].copy_from_slice(&prefix[..len]);
    mask[..len].fill(0xff);
    HttpRule {
        rate: rate(&limit.rate, workload),
        limit: state,
        answer: 0,
        methods: limit.matches.methods.iter().map(|method| bit(*method)).fold(0, |all, bit| all | bit),
        path_len: len as u16,
        port: limit.matches.port.unwrap_or_default(),
        _pad: 0,
        path,
        mask,
    }
}

/// The same by the method's name; 0 for one that no rule names.
pub(super) fn method_bit(name: &str) -> u16 {
    let name: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    Method::deserialize(name).map_or(0, bit)
}

const fn bit(method: Method) -> u16 {
    match method {
        Method::Get => METHOD_GET,
        Method::Head => METHOD_HEAD,
        Method::Post => METHOD_POST,
        Method::Put => METHOD_PUT,
        Method::Delete => METHOD_DELETE,
        Method::Patch => METHOD_PATCH,
        Method::Options => METHOD_OPTIONS,
    }
}

/// Headers that say how long the answer is and what comes after it: these are not for a policy to say.
const OWN: [HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TRAILER,
    header::RETRY_AFTER,
];

/// What is answered (RFC 9110, RFC 9112).
///
/// # Errors
/// What is wrong with it, behind the path of its settings.
pub fn answer(limit: &RequestLimit) -> Result<Answer, String> {
    let settings = limit.answer.clone().unwrap_or_default();
    let status = StatusCode::from_u16(settings.status).ok().filter(|status| status.as_u16() >= 400);
    let status = status.filter(|status| status.as_u16() < 600).ok_or(".status: is from 400 to 599")?;
    let mut text = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("Limited"));
    let mut put = |name: &str, value: &str| {
        // A String takes everything.
        let _ = write!(text, "{name}: {value}\r\n");
    };
    let mut has_type = false;
    for (index, Header { name, value }) in settings.headers.iter().enumerate() {
        let path = format!(".headers[{index}]");
        let parsed = HeaderName::from_bytes(name.as_bytes());
        let parsed = parsed.map_err(|_| format!("{path}.name: {name:?} is no name of a header"))?;
        if OWN.contains(&parsed) {
            return Err(format!("{path}.name: {name} is made by the agent"));
        }
        HeaderValue::from_str(value).map_err(|_| format!("{path}.value: {value:?} is no value of a header"))?;
        has_type |= parsed == header::CONTENT_TYPE;
        put(name, value);
    }
    let seconds =
        settings.retry_after.unwrap_or_else(|| rate(&limit.rate, None).interval.div_ceil(1_000_000_000) as u32);
    put("Retry-After", &seconds.to_string());
    if !has_type && !settings.body.is_empty() {
        put("Content-Type", "text/plain; charset=utf-8");
    }
    put("Content-Length", &settings.body.len().to_string());
    put("Connection", "close");
    text.push_str("\r\n");
    let head_len = text.len();
    text.push_str(&settings.body);
    if text.len() > MAX_ANSWER {
        return Err(format!(": has {} bytes with all its headers; one of {MAX_ANSWER} fits into a packet", text.len()));
    }
    Ok(Answer { bytes: text.into_bytes(), head_len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::traffic::settings::{AnswerSettings, Per, RateLimit, RequestMatch};

    fn limit(answer: Option<AnswerSettings>) -> RequestLimit {
        let rate = RateLimit { per_second: 5, burst: None, per: Per::Pod };
        RequestLimit { name: None, matches: RequestMatch::default(), rate, answer }
    }

    #[test]
    fn an_answer_is_whole_and_fits() {
        let answer = answer(&limit(None)).expect("an answer");
        let text = String::from_utf8(answer.bytes.clone()).expect("text");
        let expected = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\n\
                        Content-Length: 18\r\nConnection: close\r\n\r\ntoo many requests\n";
        assert_eq!(text, expected);
        assert!(text[..answer.head_len].ends_with("\r\n\r\n"));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for (settings, error) in [
            (r#"{"status": 200}"#, ".status: is from 400 to 599"),
            (r#"{"headers": [{"name": "a b", "value": "c"}]}"#, ".headers[0].name: \"a b\" is no name of a header"),
            (
                r#"{"headers": [{"name": "x", "value": "a\r\nb"}]}"#,
                ".headers[0].value: \"a\\r\\nb\" is no value of a header",
            ),
            (
                r#"{"headers": [{"name": "connection", "value": "x"}]}"#,
                ".headers[0].name: connection is made by the agent",
            ),
        ] {
            let settings = serde_json::from_str(settings).expect("settings");
            assert_eq!(answer(&limit(Some(settings))), Err(error.to_owned()));
        }
        let settings = AnswerSettings { body: "x".repeat(MAX_ANSWER), ..AnswerSettings::default() };
        assert!(answer(&limit(Some(settings))).is_err_and(|error| error.contains("fits into a packet")));
    }
}
