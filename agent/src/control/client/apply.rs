//! `sidestep policy apply` and `sidestep policy delete`: policies into the directory that the agent reads, and what they change.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{ClientError, fetch, governance::lines, quiet_on_broken_pipe, terminal::append_escaped, write_out};
use crate::{
    config::{
        policy_directory::{self, Change, DirectoryError, PolicyDirectory},
        policy_files::Document,
    },
    control::{
        governance::{GovernanceReport, GovernedPod, PolicySources, UnmetPolicies},
        protocol::{Ask, Frame},
    },
    policy::precedence::Key,
};

/// Pause between looks at whether it is in force.
const PAUSE: Duration = Duration::from_millis(50);

/// What is done, and how.
#[derive(Clone, Copy, Debug)]
pub struct ApplyOptions {
    /// How long it may take until it is in force.
    pub timeout: Duration,
    /// Nothing is done: what would be is told.
    pub is_dry_run: bool,
}

/// A policy, with what becomes of it and its file.
struct Step<'a> {
    key: &'a Key,
    change: Change,
    file: PathBuf,
}

/// Puts policies into the agent's directory and waits until they are in force; prints what has changed.
///
/// # Errors
/// The agent does not run or refuses, a file can't be written, or not all is in force in time.
pub fn apply(
    socket: &Path,
    documents: &[Document],
    options: ApplyOptions,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let mut directory = open(socket)?;
    let mut steps = Vec::new();
    for Document { key, text, origin } in documents {
        let (change, file) = directory.put(key, text, origin)?;
        steps.push(Step { key, change, file });
    }
    directory.check()?;
    if options.is_dry_run {
        return tell(&steps, " (dry run)", "", out);
    }
    let write = || {
        let changed = steps.iter().zip(documents).filter(|(step, _)| step.change != Change::Unchanged);
        changed.into_iter().try_for_each(|(step, document)| policy_directory::write(&step.file, &document.text))
    };
    bring_into_force(socket, &steps, write, options.timeout, out)
}

/// Takes policies out of the agent's directory and waits until that is in force; prints what has changed.
///
/// # Errors
/// As those of [`apply`].
pub fn delete(socket: &Path, keys: &[Key], options: ApplyOptions, out: &mut dyn Write) -> Result<(), ClientError> {
    let directory = open(socket)?;
    let step = |key| Ok(Step { key, change: Change::Deleted, file: directory.own_file(key)? });
    let steps = keys.iter().map(step).collect::<Result<Vec<_>, DirectoryError>>()?;
    if options.is_dry_run {
        return tell(&steps, " (dry run)", "", out);
    }
    let remove = || steps.iter().try_for_each(|step| policy_directory::remove(&step.file));
    bring_into_force(socket, &steps, remove, options.timeout, out)
}

fn open(socket: &Path) -> Result<PolicyDirectory, ClientError> {
    let sources = |frame: Frame<'_>| if let Frame::PolicySources(sources) = frame { Some(sources) } else { None };
    let PolicySources { files, api_server } = fetch(socket, Ask::PolicySources, sources)?;
    match PolicyDirectory::open(&files) {
        Err(DirectoryError::None) if api_server => Err(ClientError::OfApiServer),
        opened => Ok(opened?),
    }
}

/// Does it, has the agent read its policies again, and waits until what they say is in force.
fn bring_into_force(
    socket: &Path,
    steps: &[Step<'_>],
    act: impl FnOnce() -> Result<(), DirectoryError>,
    timeout: Duration,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let end = Instant::now() + timeout;
    let before = report(socket)?;
    act()?;
    let version = |frame: Frame<'_>| if let Frame::PoliciesRead { version } = frame { Some(version) } else { None };
    let version = fetch(socket, Ask::ReadPolicies, version)?;
    let after = loop {
        let report = report(socket)?;
        let why = unmet(&report, version, steps);
        if why.is_empty() {
            break report;
        }
        if Instant::now() >= end {
            tell(steps, "", &changes(&before, &report, steps), out)?;
            return Err(ClientError::NotInForce(why.join("; ")));
        }
        thread::sleep(PAUSE);
    };
    tell(steps, "", &changes(&before, &after, steps), out)
}

fn report(socket: &Path) -> Result<GovernanceReport, ClientError> {
    fetch(socket, Ask::Governance, |frame| if let Frame::Governance(report) = frame { Some(*report) } else { None })
}

/// As the agent's reports name it.
fn name_in_reports(key: &Key) -> String {
    format!("{key} (file)")
}

/// Why the policies are not in force, if they are not.
fn unmet(report: &GovernanceReport, version: u64, steps: &[Step<'_>]) -> Vec<String> {
    if report.files_version < version {
        return vec!["the agent has not brought it to the kernel yet".to_owned()];
    }
    let names: Vec<_> = steps.iter().map(|step| name_in_reports(step.key)).collect();
    let concerns = |unmet: &&UnmetPolicies| {
        unmet.policies.as_ref().is_none_or(|policies| policies.iter().any(|policy| names.contains(policy)))
    };
    report.unmet.iter().filter(concerns).map(|unmet| unmet.text.clone()).collect()
}

/// What has changed for which Pods: the lines of `sidestep policy show` that are gone and that are new, and of a list that has other
/// entries the one that names it.
fn changes(before: &GovernanceReport, after: &GovernanceReport, steps: &[Step<'_>]) -> String {
    let names: Vec<_> =
        steps.iter().filter(|step| step.change == Change::Configured).map(|step| name_in_reports(step.key)).collect();
    let lines_of = |report: &GovernanceReport, cgroup: u64| {
        report.pods.iter().find(|pod| pod.cgroup == cgroup).map(lines).unwrap_or_default()
    };
    let mut text = String::new();
    let gone = before.pods.iter().filter(|pod| !after.pods.iter().any(|other| other.cgroup == pod.cgroup));
    for GovernedPod { cgroup, .. } in after.pods.iter().chain(gone) {
        let (old, new) = (lines_of(before, *cgroup), lines_of(after, *cgroup));
        let mut of_pod = String::new();
        for line in old.iter().skip(1).filter(|line| !new.contains(line)) {
            let _ = writeln!(of_pod, "  - {line}");
        }
        for line in new.iter().skip(1) {
            let is_changed = names.iter().any(|name| line.contains(name));
            if !old.contains(line) {
                let _ = writeln!(of_pod, "  + {line}");
            } else if is_changed {
                let _ = writeln!(of_pod, "  ~ {line}");
            }
        }
        if !of_pod.is_empty() {
            let head = new.first().or(old.first()).map(String::as_str).unwrap_or_default();
            let _ = writeln!(text, "{head}\n{}", of_pod.trim_end_matches('\n'));
        }
    }
    if text.is_empty() { "Nothing has changed for the Pods of this node.\n".to_owned() } else { text }
}

fn tell(steps: &[Step<'_>], more: &str, changes: &str, out: &mut dyn Write) -> Result<(), ClientError> {
    let mut text = String::new();
    for Step { key, change, file } in steps {
        let change = match change {
            Change::Created => "created",
            Change::Configured => "configured",
            Change::Unchanged => "unchanged",
            Change::Deleted => "deleted",
        };
        let _ = writeln!(text, "{key}: {change}{more}    {}", file.display());
    }
    text.push_str(changes);
    let mut escaped = Vec::new();
    append_escaped(text.as_bytes(), &mut escaped);
    quiet_on_broken_pipe(write_out(out, &escaped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::governance::GovernedTier;

    fn pod(cgroup: u64, lists: &[&str]) -> GovernedPod {
        let egress = Some(lists.iter().map(|name| format!("SidestepPolicy shop/{name} (file)")).collect());
        let tier = GovernedTier { scope: "namespace".to_owned(), egress, ..GovernedTier::default() };
        let (namespace, pod) = ("shop".to_owned(), format!("web-{cgroup}"));
        GovernedPod { namespace, pod, cgroup, tiers: vec![tier], ..GovernedPod::default() }
    }

    fn key(name: &str) -> Key {
        Key { namespace: Some("shop".into()), name: name.into() }
    }

    #[test]
    fn pods_for_which_something_has_changed_are_told() {
        let report = |pods| GovernanceReport { pods, files_version: 3, ..GovernanceReport::default() };
        let before = report(vec![pod(1, &["a"]), pod(2, &["b"]), pod(3, &["c"]), pod(4, &["d"])]);
        let after = report(vec![pod(1, &["a", "new"]), pod(2, &["b"]), pod(3, &["c"]), pod(5, &["new"])]);
        let (b, new) = (key("b"), key("new"));
        let steps = [
            Step { key: &b, change: Change::Configured, file: PathBuf::new() },
            Step { key: &new, change: Change::Created, file: PathBuf::new() },
        ];
        let list = |names: &str| format!("namespace: may open connections to the list of {names}");
        let (a, b, d, new) = ("a (file)", "b (file)", "d (file)", "new (file)");
        let policy = |name: &str| format!("SidestepPolicy shop/{name}");
        let expected = format!(
            "Pod shop/web-1\n  - {}\n  + {}\nPod shop/web-2\n  ~ {}\nPod shop/web-5\n  + {}\nPod shop/web-4\n  - {}\n",
            list(&policy(a)),
            list(&format!("{}, {}", policy(a), policy(new))),
            list(&policy(b)),
            list(&policy(new)),
            list(&policy(d)),
        );
        assert_eq!(changes(&before, &after, &steps), expected);
    }

    #[test]
    fn only_what_concerns_the_policies_keeps_them_from_being_in_force() {
        let web = key("web");
        let steps = [Step { key: &web, change: Change::Created, file: PathBuf::new() }];
        let of = |text: &str, policies: Option<&str>| UnmetPolicies {
            text: text.to_owned(),
            policies: policies.map(|name| vec![name.to_owned()]),
        };
        let report = GovernanceReport {
            unmet: vec![
                of("all", None),
                of("its own", Some("SidestepPolicy shop/web (file)")),
                of("its namesake's", Some("SidestepPolicy shop/web")),
            ],
            files_version: 2,
            ..GovernanceReport::default()
        };
        assert_eq!(unmet(&report, 2, &steps), ["all", "its own"]);
        assert_eq!(unmet(&report, 3, &steps), ["the agent has not brought it to the kernel yet"]);
    }
}
