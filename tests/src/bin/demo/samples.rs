//! The containers whose logs are shown.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use sidestep_tests::{Container, DEADLINE, Network, Testbed, wait_until};

/// A service with an error now and then: what log4j2 writes for one, from a shell so that no Java is needed.
const CHECKOUT: &str = r#"
n=0
while [ ! -e /data/stop ]; do
  n=$((n+1)); echo "INFO  order $n accepted"
  if [ $((n % 4)) = 0 ]; then
    printf 'ERROR payment of order %d failed\njava.lang.IllegalStateException: card declined\n\tat shop.Payment.charge(Payment.java:42)\n\tat shop.Checkout.submit(Checkout.java:17)\nCaused by: java.io.IOException: gateway: 503\n\tat shop.Gateway.call(Gateway.java:88)\n\t... 2 more\n' $n
  fi
  usleep 500000
done
echo "stopping" >&2; touch /data/stopped; sleep 1000
"#;

/// A log file that is rotated by renaming every ten lines.
const SEARCH: &str = r#"
n=0
while [ ! -e /data/stop ]; do
  n=$((n+1)); echo "query $n took $((n * 7 % 50)) ms" >> /var/log/search.log
  if [ $((n % 10)) = 0 ]; then mv /var/log/search.log /var/log/search.log.$((n / 10)); fi
  usleep 400000
done
touch /data/stopped; sleep 1000
"#;

/// As fast as the pipe takes it, in two bursts, 200 bytes a line.
const FLOOD: &str = r#"
line=$(printf '%0199d' 7)
yes $line | head -c 10000000
sleep 3
yes $line | head -c 10000000
touch /data/stopped; sleep 1000
"#;

/// Answers requests, and knows of no limit.
const API: &str = r#"
mkdir /data/www; echo '{"items":[]}' > /data/www/cart; httpd -p 8080 -h /data/www
echo "listening on port 8080"
while [ ! -e /data/stop ]; do usleep 100000; done
touch /data/stopped; sleep 1000
"#;

/// A client that asks more often than it may, and shows what it gets.
const CLIENT: &str = r#"
until wget -q -O /dev/null http://$API:8080/cart; do usleep 100000; done 2>/dev/null
n=0
while [ ! -e /data/stop ]; do
  n=$((n+1)); echo "GET /cart $n: $(wget -S -O /dev/null http://$API:8080/cart 2>&1 | sed -n 's/^ *HTTP.1.. //p')"
  if [ $((n % 5)) = 0 ]; then sleep 3; else usleep 50000; fi
done
touch /data/stopped; sleep 1000
"#;

/// A job that is over before anyone could have looked for it.
const SHORT: &str = "echo thumbnail of image $IMAGE written; sleep 0.02; echo done";

/// How often such a job is started.
const SHORT_PERIOD: Duration = Duration::from_secs(2);

/// One sample, and what the demo itself knows it to have written.
pub(crate) struct Sample {
    pub(crate) container: Container,
    /// The flood is expected to lose lines of its own; the others none.
    pub(crate) floods: bool,
    /// Whether it has ended, and its account may be closed.
    pub(crate) ended: bool,
}

impl Sample {
    /// Bytes that the runtime has received from its pipes, and that stand in its log files.
    pub(crate) fn written(&self) -> Result<u64> {
        let mut bytes = (self.container.stdout().len() + self.container.stderr().len()) as u64;
        if !self.ended {
            for entry in fs::read_dir(self.container.rootfs().join("var/log"))? {
                bytes += entry?.metadata()?.len();
            }
        }
        Ok(bytes)
    }
}

/// All samples.
pub(crate) struct Samples {
    running: Vec<Sample>,
    ended: Vec<Sample>,
    last_short: Instant,
}

impl Samples {
    /// Starts those that run all the time; those that talk to each other if there is a network for them.
    pub(crate) fn start(bed: &Testbed, network: Option<&Network>) -> Result<Self> {
        let mut running = Vec::new();
        if let Some(network) = network {
            let api = bed.container("api").pod("backend", "api-6b8d4-tq5zn").shell(API).start()?;
            let address = format!("API={}", network.connect(&api)?.four);
            let client = bed.container("client").pod("shop", "web-0").env(&address).shell(CLIENT).start()?;
            network.connect(&client)?;
            running.extend([api, client].map(|container| Sample { container, floods: false, ended: false }));
        }
        for (namespace, pod, name, script) in [
            ("shop", "checkout-7c9f-x2x8p", "checkout", CHECKOUT),
            ("shop", "search-0", "search", SEARCH),
            ("batch", "flood-kq6vd", "flood", FLOOD),
        ] {
            let container = bed.container(name).pod(namespace, pod).shell(script).start()?;
            running.push(Sample { container, floods: name == "flood", ended: false });
        }
        Ok(Self { running, ended: Vec::new(), last_short: Instant::now() })
    }

    /// The Pod whose metrics are shown as an example.
    pub(crate) fn shown_pod(&self) -> &str {
        self.running.last().map_or("", |sample| sample.container.pod())
    }

    /// Whether a container is the one that floods.
    pub(crate) fn floods(&self, container_id: &str) -> bool {
        self.running.iter().any(|sample| sample.floods && sample.container.id() == container_id)
    }

    /// Every sample.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Sample> {
        self.running.iter().chain(&self.ended)
    }

    /// Starts a short job when it is time.
    pub(crate) fn tick(&mut self, bed: &Testbed) -> Result<()> {
        if self.last_short.elapsed() < SHORT_PERIOD {
            return Ok(());
        }
        self.last_short = Instant::now();
        let number = self.ended.len() + 1;
        let builder = bed.container("resize").pod("batch", &format!("thumbnail-{number}"));
        let mut container = builder.env(&format!("IMAGE={number}")).shell(SHORT).start()?;
        container.wait()?;
        self.ended.push(Sample { container, floods: false, ended: true });
        Ok(())
    }

    /// Lets all writers come to their end; they stay, so that their ledgers can be read.
    pub(crate) fn finish(&self) -> Result<()> {
        for sample in &self.running {
            fs::write(sample.container.rootfs().join("data/stop"), "")?;
        }
        for sample in &self.running {
            let mark = sample.container.rootfs().join("data/stopped");
            wait_until("the end of a sample", DEADLINE, || Ok(mark.exists().then_some(())))?;
        }
        Ok(())
    }
}
