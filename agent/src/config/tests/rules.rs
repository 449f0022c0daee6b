//! Which containers and files are captured.

use super::config;
use crate::{config::StartAt, record::Resource};

#[test]
fn the_first_rule_that_matches_decides_and_inherits() {
    let config = config(
        "
capture:
  files: {include: [/general/**], start_at: beginning}
  rules:
    - match: {namespace: [kube-*], container: [proxy]}
      logs: false
    - match: {image: ['registry/*']}
      files: {exclude: ['**/skip.log']}
",
    );
    let resource = |namespace: Option<&str>, container: &str, image: &str| Resource {
        namespace: namespace.map(Into::into),
        container_name: Some(container.into()),
        image: Some(image.into()),
        ..Resource::default()
    };
    let logs = |resource: &Resource| config.capture.rule(resource).map(|rule| rule.logs);
    assert_eq!(logs(&resource(Some("kube-system"), "proxy", "registry/a/b:1")), Some(false));
    assert_eq!(logs(&resource(Some("kube-system"), "app", "registry/a/b:1")), Some(true));
    assert_eq!(logs(&resource(None, "proxy", "other")), None);
    let files = &config.capture.rules[1].files;
    assert!(files.matches("/general/a.log") && !files.matches("/general/skip.log") && !files.matches("/x.log"));
    assert_eq!(files.start_at, StartAt::Beginning);
}

#[test]
fn the_default_paths_are_logs_and_nothing_else() {
    let config = config("");
    for path in ["/var/log/app", "/var/log/nginx/access.log", "/srv/a/b.log", "/a.log"] {
        assert!(config.capture.files.matches(path), "{path}");
    }
    for path in
        ["/var/log/a.log.1.gz", "/var/log/wtmp", "/var/log/journal/x/system.journal", "/etc/passwd", "/a.log.bak"]
    {
        assert!(!config.capture.files.matches(path), "{path}");
    }
    assert!(config.server.files.matches("/var/log/syslog") && config.server.files.matches("/var/log/kern.log"));
    assert!(!config.server.files.matches("/var/log/containers/a.log"));
}
