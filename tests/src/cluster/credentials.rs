//! Who is who in a cluster: one authority, the API server's certificate, the key of service accounts, and a token for
//! each component.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::json;

use super::{Place, network};

/// Names and addresses that the API server has, inside of Pods too.
const NAMES: &str = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
                     DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1";

/// The files of a cluster's credentials.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    directory: PathBuf,
}

/// Whom a token stands for.
struct Identity {
    token: String,
    user: String,
    groups: &'static str,
    kubeconfig: PathBuf,
}

impl Credentials {
    /// Those of a cluster, made or not.
    pub(super) fn of(place: &Place) -> Self {
        Self { directory: place.credentials() }
    }

    /// Makes them all, and the kubeconfig of each client.
    ///
    /// # Errors
    /// There is no `openssl`, or no space.
    pub(super) fn make(place: &Place, nodes: u8) -> Result<Self> {
        let credentials = Self::of(place);
        fs::create_dir_all(&credentials.directory)?;
        let names = format!("subjectAltName={NAMES},IP:{},IP:{}", network::address(1), network::API_SERVICE);
        let curve = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let authority =
            ["req", "-x509", "-subj", "/CN=test cluster", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem"];
        credentials.openssl(&[&authority[..], &curve].concat())?;
        let request =
            ["req", "-subj", "/CN=kube-apiserver", "-addext", &names, "-keyout", "server.key", "-out", "server.csr"];
        credentials.openssl(&[&request[..], &curve].concat())?;
        let sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        credentials
            .openssl(&[&sign[..], &["-days", "30", "-copy_extensions", "copy", "-out", "server.pem"]].concat())?;
        credentials.openssl(&["genrsa", "-out", "accounts.key", "2048"])?;
        credentials.openssl(&["rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"])?;

        let identity = |user: String, groups, kubeconfig| {
            Ok::<_, anyhow::Error>(Identity { token: token()?, user, groups, kubeconfig })
        };
        let mut identities = vec![
            identity("admin".to_owned(), "system:masters", place.kubeconfig())?,
            identity("system:kube-proxy".to_owned(), "", credentials.kubeconfig("proxy"))?,
        ];
        for number in 1..=nodes {
            let user = format!("system:node:{}", network::node_name(place, number));
            identities.push(identity(user, "system:nodes", credentials.kubeconfig(&format!("kubelet-{number}")))?);
        }
        let authority = fs::read(credentials.file("ca.pem"))?;
        let mut tokens = String::new();
        for (number, identity) in identities.iter().enumerate() {
            tokens += &format!("{},{},{number},\"{}\"\n", identity.token, identity.user, identity.groups);
            write(&identity.kubeconfig, &kubeconfig(place.name(), &authority, identity))?;
        }
        write(&credentials.file("tokens.csv"), &tokens)?;
        Ok(credentials)
    }

    /// One of the files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Of a component.
    pub(super) fn kubeconfig(&self, component: &str) -> PathBuf {
        self.file(&format!("{component}.kubeconfig"))
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command.current_dir(&self.directory).args(arguments);
        let output = command.output().context("running openssl: apt-get install openssl")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// The client's configuration in JSON, which is YAML too.
fn kubeconfig(cluster: &str, authority: &[u8], identity: &Identity) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": cluster, "cluster": {
            "server": format!("https://{}:{}", network::address(1), network::API_PORT),
            "certificate-authority-data": BASE64.encode(authority),
        } }],
        "users": [{ "name": identity.user, "user": { "token": identity.token } }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": identity.user } }],
        "current-context": cluster,
    })
    .to_string()
}

/// Nobody but root reads it: it is a key.
fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).with_context(|| format!("writing {}", file.display()))
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("reading /dev/urandom")?;
    Ok(HEXLOWER.encode(&bytes))
}
