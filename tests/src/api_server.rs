//! A real API server of Kubernetes with its etcd, and without any node: what the agent is told of Pods, while runc
//! pretends to be the kubelet. A whole cluster is in [`crate::cluster`].

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{DEADLINE, Testbed, daemon::Daemon, http, wait_until};

/// Who may do everything.
const ADMINISTRATOR: &str = "administrator";
/// Who may do what the agent's role says.
const AGENT: &str = "agent";

/// The servers. They are ended when dropped.
#[derive(Debug)]
pub struct ApiServer<'bed> {
    bed: &'bed Testbed,
    programs: PathBuf,
    directory: PathBuf,
    etcd_port: u16,
    port: u16,
    etcd: Option<Daemon>,
    server: Option<Daemon>,
}

impl<'bed> ApiServer<'bed> {
    /// Starts both with an empty disk, lets the agent do what its role needs, and waits until all of that holds.
    ///
    /// # Errors
    /// A program is missing, or does not come up.
    pub fn start(bed: &'bed Testbed) -> Result<Self> {
        let programs = xtask::kubernetes::built()?;
        let programs =
            programs.context("the Kubernetes programs are not built: `cargo xtask cluster up` builds them")?;
        let directory = bed.path("api-server")?;
        fs::create_dir_all(&directory)?;
        let (etcd_port, port) = (http::free_port()?, http::free_port()?);
        let mut servers = Self { bed, programs, directory, etcd_port, port, etcd: None, server: None };
        servers.make_credentials()?;
        servers.run_etcd()?;
        servers.run()?;
        servers.allow(&[
            ("", "pods", &["list", "watch"]),
            ("", "namespaces", &["list", "watch"]),
            ("batch", "jobs", &["get"]),
            ("apps", "replicasets", &["get"]),
        ])?;
        servers.kubectl(&["create", "namespace", "shop"], "")?;
        Ok(servers)
    }

    fn run_etcd(&mut self) -> Result<()> {
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let peer = format!("http://127.0.0.1:{}", http::free_port()?);
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(self.directory.join("etcd"));
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.arg("--initial-cluster").arg(format!("default={peer}")).arg("--unsafe-no-fsync");
        self.etcd = Some(Daemon::start(self.bed, &mut etcd, &self.directory.join("etcd.log"), "etcd-server")?);
        Ok(())
    }

    /// Starts the API server, also again after [`ApiServer::kill`], and waits until it answers.
    ///
    /// # Errors
    /// It does not come up; the error has its last words.
    pub fn run(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let log = self.directory.join("api-server.log");
        let mut server = Command::new(self.programs.join("kube-apiserver"));
        server.arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port));
        server.args(["--bind-address=127.0.0.1", "--service-cluster-ip-range=10.96.0.0/16"]);
        server.arg(format!("--secure-port={}", self.port)).arg(format!("--cert-dir={}", file("certificates")));
        server.arg("--service-account-issuer=https://kubernetes.default");
        server.arg(format!("--service-account-key-file={}", file("accounts.key")));
        server.arg(format!("--service-account-signing-key-file={}", file("accounts.key")));
        server.arg(format!("--token-auth-file={}", file("tokens.csv")));
        // There is no controller that makes accounts for Pods.
        server.args(["--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"]);
        self.server = Some(Daemon::start(self.bed, &mut server, &log, "")?);
        wait_until("the API server", DEADLINE, || {
            if let Some(status) = self.server.as_mut().map(Daemon::ended).transpose()?.flatten() {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let last = log.lines().rev().take(5).collect::<Vec<_>>().join("\n");
                anyhow::bail!("the API server ended: {status}\n{last}");
            }
            Ok(self.kubectl(&["get", "--raw", "/readyz"], "").ok())
        })?;
        Ok(())
    }

    /// Kills the API server; what it holds stays in etcd.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let server = self.server.take().context("the API server does not run")?;
        server.signal(Signal::KILL)
    }

    /// The kubeconfig of the agent.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join(AGENT)
    }

    /// Lets the agent do this, and nothing else: API group, resource and verbs.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn allow(&self, rights: &[(&str, &str, &[&str])]) -> Result<()> {
        let rule = |(group, resource, verbs): &(&str, &str, &[&str])| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
        let rules: Vec<_> = rights.iter().map(rule).collect();
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": AGENT }, "rules": rules,
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": AGENT },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": AGENT },
            "subjects": [{ "kind": "User", "name": AGENT }],
        });
        self.apply(&role)?;
        self.apply(&binding)
    }

    /// Makes an object, or changes it.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &object.to_string()).map(drop)
    }

    /// Makes a Pod of `node`, with what `metadata` adds; returns its UID.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn create_pod(&self, name: &str, node: &str, metadata: &Value) -> Result<String> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "test" }] },
        });
        for (key, value) in metadata.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        let made = self.kubectl(&["create", "-o", "json", "-f", "-"], &pod.to_string())?;
        let made: Value = serde_json::from_str(&made)?;
        Ok(made["metadata"]["uid"].as_str().context("a UID")?.to_owned())
    }

    /// Deletes a Pod at once.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "pod", name, "-n", "shop", "--force", "--grace-period=0", "--wait=true"], "").map(drop)
    }

    /// Runs `kubectl` as who may do everything; returns its output.
    ///
    /// # Errors
    /// It fails; the error has what it said.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut kubectl = Command::new(self.programs.join("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.directory.join(ADMINISTRATOR)).args(arguments);
        let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("its standard input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn make_credentials(&self) -> Result<()> {
        let key = Command::new("openssl").args(["genrsa", "-out"]).arg(self.directory.join("accounts.key")).output()?;
        ensure!(key.status.success(), "openssl: {}", String::from_utf8_lossy(&key.stderr));
        let tokens = format!("{ADMINISTRATOR}-token,{ADMINISTRATOR},1,\"system:masters\"\n{AGENT}-token,{AGENT},2\n");
        fs::write(self.directory.join("tokens.csv"), tokens)?;
        for user in [ADMINISTRATOR, AGENT] {
            let server = format!("https://127.0.0.1:{}", self.port);
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{ "name": "test", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
                "users": [{ "name": user, "user": { "token": format!("{user}-token") } }],
                "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }],
            });
            fs::write(self.directory.join(user), config.to_string())?;
        }
        Ok(())
    }
}
