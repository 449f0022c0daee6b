//! The control plane, on the first node: the arguments of its components.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{Place, credentials::Credentials, network, node::Component};

/// Who has asked the API server for what: service accounts alone, and no bodies.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
  "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]}"#;

/// Where the API server writes that to, an event of `audit.k8s.io/v1` in JSON a line.
pub(super) fn audit_log(place: &Place) -> PathBuf {
    place.logs().join("audit.log")
}

fn audit_policy(place: &Place) -> PathBuf {
    place.directory().join("audit-policy.json")
}

/// Writes the files that components read.
///
/// # Errors
/// There is no space.
pub(super) fn prepare(place: &Place) -> Result<()> {
    let path = audit_policy(place);
    fs::write(&path, AUDIT_POLICY).with_context(|| format!("writing {}", path.display()))
}

/// The arguments of a component of the control plane; of any other, none.
pub(super) fn arguments(component: Component, place: &Place) -> Vec<String> {
    let credentials = Credentials::of(place);
    let file = |name: &str| credentials.file(name).display().to_string();
    let admin = place.kubeconfig().display().to_string();
    match component {
        Component::Etcd => vec![
            "--data-dir=/var/lib/etcd".to_owned(),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            "--log-level=warn".to_owned(),
        ],
        Component::ApiServer => vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={}", network::address(1)),
            format!("--secure-port={}", network::API_PORT),
            format!("--service-cluster-ip-range={}", network::SERVICES),
            format!("--tls-cert-file={}", file("server.pem")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--audit-policy-file={}", audit_policy(place).display()),
            format!("--audit-log-path={}", audit_log(place).display()),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ],
        Component::ControllerManager => vec![
            format!("--kubeconfig={admin}"),
            format!("--service-account-private-key-file={}", file("accounts.key")),
            format!("--root-ca-file={}", file("ca.pem")),
            "--leader-elect=false".to_owned(),
            "--controllers=*,-nodeipam,-service-lb-controller,-node-route-controller,-cloud-node-lifecycle-controller"
                .to_owned(),
        ],
        Component::Scheduler => vec![format!("--kubeconfig={admin}"), "--leader-elect=false".to_owned()],
        Component::Containerd | Component::Kubelet | Component::KubeProxy => Vec::new(),
    }
}
