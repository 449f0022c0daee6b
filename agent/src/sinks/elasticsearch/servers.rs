//! The servers of a cluster, asked in turn.

use std::time::{Duration, Instant};

use reqwest::Url;

/// How long a server that did not answer is left out while others do.
const LEFT_OUT: Duration = Duration::from_secs(30);

/// All that are configured.
#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<(Url, Option<Instant>)>,
    next: usize,
}

impl Servers {
    /// Reads their URLs; a path in one of them stands before all that is asked for.
    ///
    /// # Errors
    /// One of them is none, or there is none at all.
    pub(super) fn new(urls: &[String]) -> Result<Self, String> {
        let read = |url: &String| {
            let mut url = Url::parse(url).map_err(|cause| format!("{url:?} is no URL: {cause}"))?;
            if !url.path().ends_with('/') {
                let path = format!("{}/", url.path());
                url.set_path(&path);
            }
            Ok((url, None))
        };
        let servers = urls.iter().map(read).collect::<Result<Vec<_>, String>>()?;
        if servers.is_empty() { Err("there is none in `urls`".to_owned()) } else { Ok(Self { servers, next: 0 }) }
    }

    /// The one to ask next: one that answers, as far as is known.
    pub(super) fn pick(&mut self, now: Instant) -> usize {
        let count = self.servers.len();
        let order = (0..count).map(|step| (self.next + step) % count);
        let works = |index: &usize| self.servers[*index].1.is_none_or(|until| until <= now);
        let picked = order.clone().find(works).unwrap_or(self.next % count);
        self.next = (picked + 1) % count;
        picked
    }

    /// It did not answer; true when there is another one to try.
    pub(super) fn fail(&mut self, index: usize, now: Instant) -> bool {
        self.servers[index].1 = Some(now + LEFT_OUT);
        self.servers.iter().any(|(_, until)| until.is_none_or(|until| until <= now))
    }

    /// It answered.
    pub(super) fn answer(&mut self, index: usize) {
        self.servers[index].1 = None;
    }

    /// A path at one of them.
    pub(super) fn url(&self, index: usize, path: &str) -> Url {
        let base = &self.servers[index].0;
        base.join(path).unwrap_or_else(|_| base.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_take_turns_and_dead_ones_are_left_out_for_a_while() {
        let urls: Vec<_> = (1..=3).map(|number| format!("http://es{number}:9200/logs")).collect();
        let mut servers = Servers::new(&urls).expect("URLs");
        let now = Instant::now();
        let picked = |servers: &mut Servers, now| -> Vec<_> { (0..4).map(|_| servers.pick(now)).collect() };
        assert_eq!(picked(&mut servers, now), [0, 1, 2, 0]);
        assert!(servers.fail(1, now));
        assert_eq!(picked(&mut servers, now), [2, 0, 2, 0]);
        assert_eq!(picked(&mut servers, now + LEFT_OUT), [1, 2, 0, 1]);
        assert!(servers.fail(0, now) && !servers.fail(2, now));
        assert_eq!(picked(&mut servers, now), [2, 0, 1, 2], "all are tried when none answers");
        servers.answer(1);
        assert_eq!(picked(&mut servers, now), [1, 1, 1, 1]);
        assert_eq!(servers.url(0, "_bulk?x=y").as_str(), "http://es1:9200/logs/_bulk?x=y");
        assert!(Servers::new(&[]).is_err());
    }
}
