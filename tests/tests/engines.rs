//! Identity of containers that Docker and containerd have started.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidestep_tests::{
    Agent, DEADLINE, Expected, end_to_end,
    engine::{Containerd, Docker},
    wait_until,
};

/// All records of a container have this resource.
fn check_resource(agent: &Agent, id: &str, expected: &[(&str, &str)]) -> Result<()> {
    let records = agent.records()?;
    for record in records.iter().filter(|record| record.resource("container.id") == id) {
        for (name, value) in expected {
            ensure!(record.resource(name) == *value, "{name} is not {value} in {}", record.value);
        }
    }
    Ok(())
}

#[test]
fn docker_containers_have_name_and_image() {
    end_to_end(|bed| {
        let docker = Docker::start(bed)?;
        let config = bed
            .config()
            .with("/identity/docker_root", json!([docker.root()]))
            .with("/identity/containerd_state", json!([docker.containerd_state()]));
        let agent = Agent::start(bed, &config)?;
        let script = "seq 1000; echo error >&2; echo logged > /var/log/app.log; echo done; sleep 1000";
        let id = docker.run("web", &[], script)?;
        wait_until("the container", DEADLINE, || Ok(docker.stdout("web")?.ends_with(b"done\n").then_some(())))?;
        ensure!(docker.exec("web", &["echo", "session"])? == b"session\n");
        let terminal = docker.run("terminal", &["--tty"], "echo on a terminal; sleep 1000")?;
        let short = docker.run("short", &[], "echo short; sleep 0.02; echo lived")?;

        let mut expected = Expected::new();
        let lines: String = (1..=1000).map(|number| format!("{number}\n")).chain(["done\n".to_owned()]).collect();
        expected.add_stream(&id, "stdout", "pod", lines.as_bytes());
        expected.add_stream(&id, "stderr", "pod", b"error\n");
        expected.add_stream(&id, "/var/log/app.log", "business", b"logged\n");
        expected.add_stream(&terminal, "stdout", "pod", b"on a terminal\n");
        expected.add_stream(&short, "stdout", "pod", b"short\nlived\n");
        expected.wait_delivered(&agent)?;
        for (id, name) in [(&id, "web"), (&terminal, "terminal"), (&short, "short")] {
            let image = ("container.image.name", Docker::IMAGE);
            check_resource(&agent, id, &[("container.name", name), image, ("container.runtime.name", "docker")])?;
        }
        agent.wait_ledger(&id, expected.total(&id))?;
        for name in ["web", "terminal", "short"] {
            docker.remove(name)?;
        }
        expected.verify(agent, &[])
    });
}

#[test]
fn containerd_containers_have_their_pod() {
    end_to_end(|bed| {
        let containerd = Containerd::start(bed)?;
        let config = bed.config().with("/identity/containerd_state", json!([containerd.state()]));
        let agent = Agent::start(bed, &config)?;
        let id = "c0ffee".repeat(11)[..64].to_owned();
        let script = "seq 1000; echo logged > /var/log/app.log; echo done; sleep 1000";
        containerd.run(&id, "cart-0", script)?;
        wait_until("the container", DEADLINE, || Ok(containerd.output(&id).ends_with(b"done\n").then_some(())))
            .with_context(|| String::from_utf8_lossy(&containerd.output(&id)).into_owned())?;

        let mut expected = Expected::new();
        expected.add_stream(&id, "stdout", "pod", &containerd.output(&id));
        expected.add_stream(&id, "/var/log/app.log", "business", b"logged\n");
        expected.wait_delivered(&agent)?;
        let resource = [
            ("k8s.pod.name", "cart-0"),
            ("k8s.namespace.name", "shop"),
            ("k8s.container.name", "app"),
            ("container.runtime.name", "containerd"),
        ];
        check_resource(&agent, &id, &resource)?;
        agent.wait_ledger(&id, expected.total(&id))?;
        containerd.remove(&id)?;
        expected.verify(agent, &[])
    });
}
