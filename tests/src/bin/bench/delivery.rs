//! Delivery to a real Kafka broker, and to OpenSearch: what it costs, how much it carries, how long it takes.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rdkafka::Offset;
use serde_json::{Value, json};
use sidestep_tests::{Agent, Config, Testbed, kafka::Broker, opensearch::OpenSearch, wait_until};

use crate::{
    Delivered,
    cost::{gigabytes, measure, per_gigabyte},
    latency,
    process::{cpu_seconds, wait_idle},
    report::{Figure, Target},
    rsyslog::{Chain, Output},
    session::Session,
    statistics::{median, quantile},
    throughput,
    worker::Job,
    writer::Writer,
};

/// Bytes of a line whose cost is measured.
const LINE: usize = 500;

/// 10 MB/s: what rsyslog carries on two cores beside its broker, so that both do the same work.
const LINES_PER_SECOND: u64 = 20_000;

/// Lines of 200 B a second to Kafka.
const THROUGHPUT: f64 = 200_000.0;

/// p99 from the write to a consumer, in milliseconds.
const LATENCY: f64 = 50.0;

/// From the start of an agent to the first record delivered, in seconds.
const RESTART: f64 = 1.0;

/// The share of rsyslog's CPU.
const SHARE: f64 = 0.5;

const TOPIC: &str = "logs.pod";
const TOPIC_OF_RSYSLOG: &str = "rsyslog";

/// How long whatever was written may take to be in the broker.
const ARRIVE: Duration = Duration::from_secs(60);

/// How long what is left to do after the last line may take.
const IDLE: Duration = Duration::from_secs(60);

/// Runs one group.
///
/// # Errors
/// Something can't be started, or lines do not arrive.
pub(crate) fn run(benchmark: Delivered, session: &mut Session) -> Result<()> {
    let bed = Testbed::new()?;
    if benchmark == Delivered::Opensearch {
        return opensearch(session, &bed);
    }
    session.step("starting a Kafka broker");
    let broker = Broker::start(&bed)?;
    for topic in [TOPIC, TOPIC_OF_RSYSLOG] {
        broker.create_topic(topic)?;
    }
    match benchmark {
        Delivered::Kafka => cost(session, &bed, &broker),
        Delivered::Throughput => throughput(session, &bed, &broker),
        Delivered::Latency => latency(session, &bed, &broker),
        Delivered::Restart => restart(session, &bed, &broker),
        Delivered::Opensearch => Ok(()),
    }
}

/// An agent whose only sink is Kafka, as it is by default.
fn config(bed: &Testbed, broker: &Broker<'_>) -> Config {
    bed.config().with("/sinks", json!([sink(broker)]))
}

fn sink(broker: &Broker<'_>) -> Value {
    json!({ "type": "kafka", "brokers": [broker.address()] })
}

fn wait_count(broker: &Broker<'_>, topic: &str, count: u64) -> Result<()> {
    let mut seen = 0;
    let waited = wait_until("the messages", ARRIVE, || {
        seen = broker.count(topic)?;
        Ok((seen >= count).then_some(()))
    });
    waited.with_context(|| format!("{seen} of {count} messages have come"))
}

fn cost(session: &mut Session, bed: &Testbed, broker: &Broker<'_>) -> Result<()> {
    session.step("kafka: CPU per GB of 500 B lines, zstd, in turns with the agent and with rsyslog");
    let mut writer = Writer::drained(bed, "writer", None)?;
    let time = session.choose(Duration::from_secs(10), Duration::from_secs(2));
    let job = Job::Lines { size: LINE, per_second: Some(LINES_PER_SECOND), time };
    writer.perform_one(Job::Lines { size: LINE, per_second: Some(LINES_PER_SECOND), time: time / 10 })?;
    let (mut agents, mut writers, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rsyslogs, mut copiers) = (Vec::new(), Vec::new());
    for _ in 0..session.choose(3, 1) {
        let alone = per_gigabyte(writer.perform_one(job)?);
        let (cpu, took) = with_agent(session, bed, &config(bed, broker), &mut writer, job)?;
        let added = took - alone;
        agents.push(cpu);
        writers.push(added);
        totals.push(cpu + added);

        session.check()?;
        let (rsyslog, copier) = beside_rsyslog(bed, broker, job)?;
        session.step(&format!("  a round: agent {cpu:.2} + {added:.2}, rsyslog {rsyslog:.2} s/GB"));
        rsyslogs.push(rsyslog);
        copiers.push(copier);
    }
    let share = median(&totals) / median(&rsyslogs);
    let what = "CPU to Kafka: agent and what the writer pays, as a share of rsyslogd's (imfile to omkafka)";
    session.report.add(Figure::of("kafka_cpu_share", what, "", vec![share])?.target(Target::AtMost(SHARE)));
    for (name, what, samples) in [
        ("kafka_cpu_per_gb", "  CPU per GB, agent and what the writer pays", totals),
        ("kafka_cpu_per_gb_agent", "  of this the agent", agents),
        ("kafka_cpu_per_gb_writer", "  of this added to the writer", writers),
        ("kafka_cpu_per_gb_rsyslog", "  CPU per GB, rsyslogd", rsyslogs),
        ("kafka_cpu_per_gb_copier", "  beside it the runtime's copier", copiers),
    ] {
        session.report.add(Figure::of(name, what, "s/GB", samples)?);
    }
    Ok(())
}

/// Seconds for a GB of an agent that delivers what the writer writes, and of the writer.
fn with_agent(
    session: &mut Session,
    bed: &Testbed,
    config: &Config,
    writer: &mut Writer,
    job: Job,
) -> Result<(f64, f64)> {
    let agent = session.agent(bed, config)?;
    let (cpu, took, ledger) = measure(&agent, writer, job)?;
    ensure!(ledger.delivered == took.bytes, "not everything was delivered: {ledger:?}");
    agent.stop()?;
    Ok((cpu, per_gigabyte(took)))
}

fn opensearch(session: &mut Session, bed: &Testbed) -> Result<()> {
    session.step("opensearch: CPU per GB of 500 B lines, with and without gzip, and as JSON to nowhere");
    let server = OpenSearch::start(bed)?;
    let mut writer = Writer::drained(bed, "writer", None)?;
    let time = session.choose(Duration::from_secs(10), Duration::from_secs(2));
    // What the server indexes on the other core.
    let job = Job::Lines { size: LINE, per_second: Some(LINES_PER_SECOND / 4), time };
    let to = |compression: &str| {
        let sink = json!({ "type": "opensearch", "urls": [server.url()], "compression": compression });
        bed.config().with("/sinks", json!([sink]))
    };
    let nowhere = bed.config().with("/sinks", json!([{ "type": "console", "format": "json" }]));
    let configs = [to("gzip"), to("none"), nowhere];
    let mut samples = configs.each_ref().map(|_| Vec::new());
    for _ in 0..session.choose(3, 1) {
        for (config, samples) in configs.iter().zip(&mut samples) {
            samples.push(with_agent(session, bed, config, &mut writer, job)?.0);
        }
        session.check()?;
    }
    let [gzip, plain, json] = samples;
    let shares = [1.0 - median(&plain) / median(&gzip), median(&json) / median(&gzip)];
    for (name, what, unit, samples) in [
        ("opensearch_cpu_per_gb", "CPU per GB to OpenSearch, the agent", "s/GB", gzip),
        ("opensearch_cpu_per_gb_plain", "  without gzip", "s/GB", plain),
        ("opensearch_cpu_per_gb_json", "  capture and JSON alone (console sink, to /dev/null)", "s/GB", json),
        ("opensearch_share_gzip", "  share of gzip", "", vec![shares[0]]),
        ("opensearch_share_json", "  share of capture and JSON", "", vec![shares[1]]),
    ] {
        session.report.add(Figure::of(name, what, unit, samples)?);
    }
    Ok(())
}

/// Seconds for a GB of rsyslogd and of the copier before it.
fn beside_rsyslog(bed: &Testbed, broker: &Broker<'_>, job: Job) -> Result<(f64, f64)> {
    let (reader, stdout) = io::pipe()?;
    let output = Output::Kafka { broker: &broker.address(), topic: TOPIC_OF_RSYSLOG };
    let chain = Chain::start(bed, reader, output)?;
    let mut writer = Writer::start(bed, "rsyslog", stdout.into())?;
    wait_idle(chain.rsyslogd(), IDLE)?;
    let count = broker.count(TOPIC_OF_RSYSLOG)?;
    let (rsyslogd, copier) = (cpu_seconds(chain.rsyslogd())?, cpu_seconds(chain.copier())?);
    let took = writer.perform_one(job)?;
    wait_count(broker, TOPIC_OF_RSYSLOG, count + took.calls)?;
    wait_idle(chain.rsyslogd(), IDLE)?;
    let rsyslogd = (cpu_seconds(chain.rsyslogd())? - rsyslogd) / gigabytes(took);
    let copier = (cpu_seconds(chain.copier())? - copier) / gigabytes(took);
    drop(writer);
    drop(chain);
    std::fs::remove_dir_all(bed.directory().join("rsyslog"))?;
    std::fs::remove_dir_all(bed.directory().join("control-rsyslog"))?;
    Ok((rsyslogd, copier))
}

fn throughput(session: &mut Session, bed: &Testbed, broker: &Broker<'_>) -> Result<()> {
    let mut writer = Writer::drained(bed, "writer", None)?;
    for (encoding, name, flood_name) in [
        ("otlp_proto", "kafka_otlp_lines_per_second", "kafka_otlp_flood_lines_per_second"),
        ("json", "kafka_json_lines_per_second", "kafka_json_flood_lines_per_second"),
    ] {
        session.step(&format!(
            "throughput: lines of 200 B by one writer to Kafka as {encoding}, the broker on the same cores"
        ));
        let agent = session.agent(bed, &config(bed, broker).with("/sinks/0/encoding", json!(encoding)))?;
        let (floods, sustained) = throughput::sustained(session, &agent, &mut writer)?;
        agent.stop()?;
        let what = format!("highest rate of 200 B lines to Kafka found without a drop, broker included, {encoding}");
        let figure = Figure::of(name, &what, "lines/s", vec![sustained])?;
        session.report.add(figure.target(Target::AtLeast(THROUGHPUT)));
        let delivered = floods.iter().map(|run| run.delivered).collect();
        session.report.add(Figure::of(flood_name, "  at full speed: delivered", "lines/s", delivered)?);
    }
    Ok(())
}

fn latency(session: &mut Session, bed: &Testbed, broker: &Broker<'_>) -> Result<()> {
    session.step("latency: 1,000 lines/s, from the write to a consumer");
    let mut writer = Writer::drained(bed, "writer", None)?;
    let agent = session.agent(bed, &config(bed, broker))?;
    let follower = broker.follow(TOPIC, Offset::Beginning)?;
    let time = session.choose(Duration::from_secs(10), Duration::from_secs(3));
    let stamps = |time| Job::Stamps { per_second: latency::LINES_PER_SECOND, time };
    let warm_up = writer.perform_one(stamps(Duration::from_secs(1)))?.calls;
    for _ in 0..warm_up {
        follower.next(ARRIVE)?.context("a line of the warm-up does not come")?;
    }
    let mut delays = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let consumer = scope.spawn(|| -> Result<Vec<f64>> {
            let expected = time.as_millis() as usize * latency::LINES_PER_SECOND as usize / 1000;
            let mut delays = Vec::with_capacity(expected);
            while delays.len() < expected {
                let record = follower.next(ARRIVE)?.with_context(|| format!("only {} lines come", delays.len()))?;
                delays.push(delay(&record.payload)?);
            }
            Ok(delays)
        });
        writer.perform_one(stamps(time))?;
        consumer.join().map_err(|_| anyhow::anyhow!("the consumer panicked"))?
    })?;
    agent.stop()?;
    delays.sort_unstable_by(f64::total_cmp);
    for (name, what, share, target) in [
        ("kafka_latency_p50", "write to a consumer of Kafka at 1,000 lines/s: p50", 0.5, None),
        ("kafka_latency_p99", "write to a consumer of Kafka at 1,000 lines/s: p99", 0.99, Some(LATENCY)),
        ("kafka_latency_max", "write to a consumer of Kafka at 1,000 lines/s: the slowest", 1.0, None),
    ] {
        let figure = Figure::of(name, what, "ms", vec![quantile(&delays, share).context("no line")?])?;
        session.report.add(match target {
            Some(limit) => figure.target(Target::AtMost(limit)),
            None => figure,
        });
    }
    Ok(())
}

/// Milliseconds since the time that a record's body begins with.
fn delay(record: &[u8]) -> Result<f64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6;
    let text = str::from_utf8(record).context("a record that is no text")?;
    Ok(now - latency::written_at(text).with_context(|| format!("no time in {text}"))?)
}

fn restart(session: &mut Session, bed: &Testbed, broker: &Broker<'_>) -> Result<()> {
    session.step("restart: from the start of an agent to the first record at a consumer");
    let mut writer = Writer::drained(bed, "writer", None)?;
    // As it is by default: its programs stay when it stops.
    let config = config(bed, broker).with("/capture/pin", json!(bed.pins()));
    session.agent(bed, &config)?.stop()?;
    let follower = broker.follow(TOPIC, Offset::End)?;
    let job = Job::Stamps { per_second: latency::LINES_PER_SECOND, time: Duration::from_secs(4) };
    let rounds = session.choose(5, 2);
    let mut seconds = Vec::new();
    for _ in 0..rounds {
        session.check()?;
        while follower.next(Duration::from_millis(500))?.is_some() {}
        let took = std::thread::scope(|scope| -> Result<f64> {
            let writing = scope.spawn(|| writer.perform_one(job));
            let start = Instant::now();
            let agent = Agent::spawn(bed, &config)?;
            follower.next(ARRIVE)?.context("no record comes")?;
            let took = start.elapsed().as_secs_f64();
            writing.join().map_err(|_| anyhow::anyhow!("the writer's thread panicked"))??;
            agent.wait_ready()?.stop()?;
            Ok(took)
        })?;
        seconds.push(took);
    }
    let figure =
        Figure::of("restart_to_first_record", "start of an agent to the first record at a consumer", "s", seconds)?;
    session.report.add(figure.target(Target::AtMost(RESTART)));
    Ok(())
}
