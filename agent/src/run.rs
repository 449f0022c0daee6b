//! `sidestep run`: configuration -> kernel -> pipeline -> signals -> end.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::run::{RunArgs, effective_path},
    config::{Attach, Config, LogFormat, display_name},
    control::{self, Tap},
    load::{self, AttachPoint, Kernel, LoadError, RootPattern},
    observe::Agent,
    pipeline::{Pipeline, StartedSinks},
    telemetry::{self, snapshot::Build},
};

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting; the text says what to do.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.load()?;
    let log_level = start_logging(&config);
    let build = Build::current();
    tracing::info!(version = build.version, kernel = build.kernel, node = %config.node_name, "sidestep starts");
    std::fs::create_dir_all(&config.state_dir).with_context(|| {
        format!("state_dir {}: it must be a directory that can be written", config.state_dir.display())
    })?;

    // What only one agent can have is claimed first: a second one ends here, before it has attached anything.
    let tap = Arc::new(Tap::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let listener = runtime.block_on(control::Listener::bind(&config.socket))?;
    let sinks = StartedSinks::start(&config, Arc::clone(&tap) as _)?;
    let endpoint = match config.telemetry_listen {
        Some(listen) => Some(runtime.block_on(telemetry::Claim::take(telemetry::Options::new(listen)))?),
        None => None,
    };

    let kernel = Kernel::load(&load_settings(&config)).map_err(|error| with_advice(&error))?;
    load::report::log(&kernel);
    let programs = kernel.programs;
    let roots = kernel.roots.clone();
    let pipeline = Pipeline::start(&config, kernel.maps, kernel.roots, sinks)?;
    let agent = Arc::new(Agent::new(&config, &pipeline, &programs.probes, roots));

    runtime.block_on(async {
        let mut metrics = "not served".to_owned();
        if let Some(endpoint) = endpoint {
            let server = telemetry::Server::new(endpoint, Arc::<Agent>::clone(&agent) as _)?;
            metrics = format!("http://{}/metrics", server.local_addr()?);
            tokio::spawn(server.serve());
        }
        tokio::spawn(control::serve(listener, Arc::<Agent>::clone(&agent) as _, tap));
        tracing::info!(socket = %config.socket.display(), metrics, "ready");
        until_end(args.config.clone(), &mut config, &pipeline, &agent, &log_level).await
    })?;

    let limit = config.shutdown_timeout;
    // The sockets end in the background: a client that reads slowly must not take the time of the last lines.
    runtime.shutdown_timeout(Duration::from_millis(100));
    let left = pipeline.stop(limit);
    drop(programs);
    if left > 0 {
        tracing::warn!(bytes = left, limit = ?limit, "stopped before everything was delivered");
    } else {
        tracing::info!("everything is delivered");
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the signal that ends the agent; reloads on SIGHUP.
async fn until_end(
    path: Option<PathBuf>,
    config: &mut Config,
    pipeline: &Pipeline,
    agent: &Agent,
    log_level: &LogLevelHandle,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(path.clone(), config, pipeline, agent, log_level),
        }
    }
    tracing::info!("stopping: what is on its way is delivered first");
    Ok(())
}

fn shown(file: Option<&PathBuf>) -> String {
    file.map_or_else(|| "defaults".to_owned(), |file| display_name(file))
}

/// Takes over what a running agent can of a changed configuration. A bad one changes nothing.
fn reload(path: Option<PathBuf>, config: &mut Config, pipeline: &Pipeline, agent: &Agent, log_level: &LogLevelHandle) {
    let file = effective_path(path.clone());
    // A file that is written anew is empty for a moment, and an empty one is a valid configuration: all defaults.
    if file.as_ref().is_some_and(|file| std::fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0)) {
        tracing::error!(file = %shown(file.as_ref()), "reload refused: the file is empty; the configuration in force stays");
        return;
    }
    let new = match (RunArgs { config: path }).load() {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(%error, file = %shown(file.as_ref()), "reload refused: the configuration in force stays");
            return;
        }
    };
    let changes = config.diff(&new);
    for part in changes.needs_restart() {
        tracing::warn!(option = part.as_str(), "reload: this option needs a restart of the agent");
    }
    let next = config.with_in_place_changes(&new);
    match pipeline.reload(config, &next) {
        Ok(()) => {
            set_log_level(log_level, &next);
            agent.set_sinks(&next);
            tracing::info!("reload done: {changes}");
            *config = next;
        }
        Err(error) => tracing::error!(%error, "reload refused: the configuration in force stays"),
    }
}

/// The error with where to look further.
fn with_advice(error: &LoadError) -> anyhow::Error {
    let advice = if error.is_of_the_node() { "; `sidestep doctor` tells more" } else { "" };
    anyhow::anyhow!("{error}{advice}")
}

fn load_settings(config: &Config) -> load::Settings {
    let capture = &config.capture;
    let ring_size = capture.ring_size.get();
    load::Settings {
        roots: capture.cgroup_roots.iter().map(|pattern| RootPattern::new(&pattern.to_string())).collect(),
        cgroup_mount: capture.cgroup_mount.clone(),
        ring_size,
        container_share: u32::try_from(capture.container_share.of(u64::from(ring_size))).unwrap_or(ring_size),
        attach: match capture.attach {
            Attach::Auto => None,
            Attach::Fexit => Some(AttachPoint::Fexit),
            Attach::Tracepoint => Some(AttachPoint::Tracepoint),
            Attach::RawTracepoint => Some(AttachPoint::RawTracepoint),
        },
    }
}

type LogLevelHandle =
    tracing_subscriber::reload::Handle<tracing::level_filters::LevelFilter, tracing_subscriber::Registry>;

/// The agent's own log goes to standard error: standard output may be a sink.
fn start_logging(config: &Config) -> LogLevelHandle {
    use std::io::IsTerminal as _;
    use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

    let (filter, handle) = tracing_subscriber::reload::Layer::new(level(config));
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colors);
    let layer = match config.log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    // A second call, as in tests, keeps the first logger.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    handle
}

fn level(config: &Config) -> tracing::level_filters::LevelFilter {
    use crate::config::LogLevel;
    match config.log.level {
        LogLevel::Error => tracing::level_filters::LevelFilter::ERROR,
        LogLevel::Warn => tracing::level_filters::LevelFilter::WARN,
        LogLevel::Info => tracing::level_filters::LevelFilter::INFO,
        LogLevel::Debug => tracing::level_filters::LevelFilter::DEBUG,
        LogLevel::Trace => tracing::level_filters::LevelFilter::TRACE,
    }
}

fn set_log_level(handle: &LogLevelHandle, config: &Config) {
    if let Err(error) = handle.reload(level(config)) {
        tracing::warn!(%error, "the log level can't be changed");
    }
}
