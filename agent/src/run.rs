//! `sidestep run`: configuration -> kernel -> pipeline -> signals -> end.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinError, JoinHandle},
};

use crate::{
    cli::run::RunArgs,
    config::{Attach, Config, WhenStopped, policy_files},
    control::{self, Tap},
    events::Event,
    kubernetes::Kubernetes,
    load::{self, AttachPoint, Kernel, LoadError, RootPattern},
    observe::Agent,
    own_log::OwnLog,
    pipeline::{Pipeline, StartedSinks, policies_in_force::PoliciesInForce},
    reload::Reload,
    telemetry::{self, snapshot::Build},
};

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting; the text says what to do.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.load()?;
    let own_log = OwnLog::start(&config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    // What only one agent can have is claimed first: a second one ends here, before it has attached anything.
    let listener = runtime.block_on(control::Listener::bind(&config.socket))?;
    load::disown(&load_settings(&config));
    let build = Build::current();
    tracing::info!(version = build.version, kernel = build.kernel, node = %config.node_name, "sidestep starts");
    std::fs::create_dir_all(&config.state_dir).with_context(|| {
        format!("state_dir {}: it must be a directory that can be written", config.state_dir.display())
    })?;
    let tap = Arc::new(Tap::default());
    let kubernetes = Kubernetes::open(&config)?;
    // A policy that is wrong is no reason to lose lines: what an agent before has put in force goes on.
    let policies = policy_files::read(&config.policies.files)
        .inspect_err(
            |error| tracing::error!(%error, "policies of files are not in force; put them right, and send SIGHUP"),
        )
        .ok()
        .map(Arc::new);
    let sinks = StartedSinks::start(&config, Arc::clone(&tap) as _)?;
    let endpoint = match config.telemetry_listen {
        Some(listen) => {
            let sink_failing_limit = config.sink_failing_limit;
            let options = telemetry::Options { sink_failing_limit, ..telemetry::Options::new(listen) };
            Some(runtime.block_on(telemetry::Claim::take(options))?)
        }
        None => None,
    };

    let kernel = Kernel::load(&load_settings(&config)).map_err(|error| with_advice(&error))?;
    load::report::log(&kernel);
    let programs = kernel.programs;
    let roots = kernel.roots.clone();
    let pipeline = Pipeline::start(
        &config,
        kernel.maps,
        kernel.roots,
        sinks,
        &kubernetes,
        (kernel.governors, policies),
        programs.pinned.is_some(),
    )?;
    let agent = Arc::new(Agent::new(&config, &pipeline, &programs, roots, kubernetes.clone()));

    runtime.block_on(async {
        let mut metrics = "not served".to_owned();
        if let Some(endpoint) = endpoint {
            let server = telemetry::Server::new(endpoint, Arc::<Agent>::clone(&agent) as _)?;
            metrics = format!("http://{}/metrics", server.local_addr()?);
            tokio::spawn(server.serve());
        }
        tokio::spawn(own_log.clone().tell());
        let in_force = PoliciesInForce::new(pipeline.containers(), pipeline.governor(), kubernetes.clone());
        tokio::spawn(kubernetes.clone().run(Arc::new(in_force)));
        tokio::spawn(control::serve(listener, Arc::<Agent>::clone(&agent) as _, tap));
        tracing::info!(socket = %config.socket.display(), metrics, "ready");
        let reload = Reload { path: args.config.clone(), pipeline: pipeline.reloader(), agent, own_log };
        until_end(&mut config, &Arc::new(reload)).await?;
        kubernetes.end().await;
        anyhow::Ok(())
    })?;

    let limit = config.shutdown_timeout;
    // The sockets end in the background: a client that reads slowly must not take the time of the last lines.
    runtime.shutdown_timeout(Duration::from_millis(100));
    let leaves = programs.pinned.as_ref().is_some_and(load::Pinned::keeps);
    let left = pipeline.stop(limit, leaves, move || drop(programs));
    if left > 0 {
        Event::StoppedEarly { bytes: left, limit }.report();
    } else {
        tracing::info!("everything is delivered, or in a buffer on disk for the next agent");
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the signal that ends the agent; reloads on SIGHUP.
async fn until_end(config: &mut Config, reload: &Arc<Reload>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // A reload waits for the sinks that it replaces, so it has a thread of its own. Signals that come meanwhile are
    // answered by one more reload.
    let mut running = None;
    let mut again = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => again = true,
            done = finished(&mut running) => {
                running = None;
                match done {
                    Ok(Some(next)) => *config = next,
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "the reload has failed"),
                }
            }
        }
        if again && running.is_none() {
            again = false;
            let (reload, config) = (Arc::clone(reload), config.clone());
            running = Some(tokio::task::spawn_blocking(move || reload.run(&config)));
        }
    }
    tracing::info!("stopping: what is on its way is delivered first");
    Ok(())
}

/// The end of what runs; never, when nothing does.
async fn finished<T>(running: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match running {
        Some(running) => running.await,
        None => std::future::pending().await,
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
        exempts_node: config.policies.exempt_node,
        pins: capture.pin.as_ref().map(|directory| load::pins::Settings {
            directory: directory.clone(),
            keep: capture.when_stopped == WhenStopped::Keep,
        }),
    }
}
