//! What the path of a cgroup says about the container in it. Pure; no input makes it panic.

use std::borrow::Cow;

use super::Runtime;

/// The longest id of a container that is believed, in bytes. Runtimes use 64; containerd allows 76.
const MAX_ID: usize = 128;

/// A Pod's quality of service.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Deserialize, serde::Serialize)]
pub enum Qos {
    /// Limits equal requests.
    Guaranteed,
    /// Some requests.
    Burstable,
    /// No requests.
    BestEffort,
}

/// What a path in the v2 hierarchy (or of a v1 controller) says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CgroupPath<'a> {
    /// The path of the container's own cgroup: the whole path, or less where the container has cgroups below it.
    pub container: &'a str,
    /// The full id; always [`is_id`].
    pub container_id: Option<&'a str>,
    /// The runtime, where the path has its mark. `/kubepods/.../<id>` has none.
    pub runtime: Option<Runtime>,
    /// The Pod's UID, with its dashes.
    pub pod_uid: Option<Cow<'a, str>>,
    /// The Pod's quality of service.
    pub qos: Option<Qos>,
}

/// Reads a path. The outermost container wins: what a container builds below its own cgroup is part of it, whatever
/// it is called.
#[must_use]
pub fn parse(path: &str) -> CgroupPath<'_> {
    // `/proc/PID/cgroup` says so of a cgroup that was removed.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let mut found = CgroupPath { container: path, container_id: None, runtime: None, pod_uid: None, qos: None };
    let mut in_kubepods = false;
    let mut parent = Parent::Other;
    let mut end = 0;
    for component in path.split('/') {
        let start = end;
        end = start + component.len();
        let container = &path[..end];
        // The slash after it.
        end += 1;
        let name = match component {
            "" | "." | ".." => continue,
            name => name,
        };
        if let Some(slice) = kubepods_slice(name) {
            in_kubepods = true;
            found.qos = slice.qos.or(found.qos);
            parent = Parent::Other;
            if let Some(uid) = slice.pod_uid {
                found.qos = found.qos.or(Some(Qos::Guaranteed));
                found.pod_uid = Some(Cow::Owned(uid));
                parent = Parent::Pod;
            }
            continue;
        }
        if in_kubepods && found.pod_uid.is_none() {
            if let Some(qos) = qos(name) {
                found.qos = Some(qos);
                continue;
            }
            if let Some(uid) = name.strip_prefix("pod").filter(|uid| is_pod_uid(uid)) {
                found.qos = found.qos.or(Some(Qos::Guaranteed));
                found.pod_uid = Some(Cow::Borrowed(uid));
                parent = Parent::Pod;
                continue;
            }
        }
        if let Some((runtime, id)) = container_name(name, parent) {
            found.container = container;
            found.container_id = Some(id);
            found.runtime = runtime;
            return found;
        }
        parent = match name {
            "docker" => Parent::Docker,
            "libpod_parent" => Parent::Libpod,
            _ => Parent::Other,
        };
    }
    found
}

/// Whether a string can be a container's id, and so be a name in a directory: ASCII letters, digits, `_`, `-`, `+`
/// and `.`, not beginning with a dot or a dash.
#[must_use]
pub fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_ID
        && !id.starts_with(['.', '-'])
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte))
}

/// What the component above says about the names below it.
#[derive(Clone, Copy)]
enum Parent {
    /// A Pod: every child is a container.
    Pod,
    /// Docker's own parent for the cgroupfs driver.
    Docker,
    /// Podman's own parent for the cgroupfs driver: a bare id below it is a Podman pod.
    Libpod,
    Other,
}

/// The prefixes that runtimes give to a container's scope, longest first where one begins with another. `None`
/// stands for the monitor of a container, which is not in it.
const PREFIXES: [(&str, Option<Runtime>); 10] = [
    ("cri-containerd-", Some(Runtime::Containerd)),
    ("nerdctl-", Some(Runtime::Containerd)),
    ("crio-conmon-", None),
    ("crio-", Some(Runtime::CriO)),
    ("docker-", Some(Runtime::Docker)),
    ("libpod-conmon-", None),
    ("libpod-payload-", Some(Runtime::Podman)),
    ("libpod-", Some(Runtime::Podman)),
    ("runc-", Some(Runtime::Runc)),
    ("crun-", Some(Runtime::Crun)),
];

fn container_name(component: &str, parent: Parent) -> Option<(Option<Runtime>, &str)> {
    if component.ends_with(".slice") || component.ends_with(".service") {
        return None;
    }
    let (name, scope) = match component.strip_suffix(".scope") {
        Some(name) => (name, true),
        None => (component, false),
    };
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix) {
            let runtime = runtime?;
            // Only the plain runtimes let a person choose the id.
            let free = scope && matches!(runtime, Runtime::Runc | Runtime::Crun) && is_id(id);
            if is_generated_id(id) || free {
                return Some((Some(runtime), id));
            }
        }
    }
    if is_generated_id(name) {
        return match parent {
            Parent::Docker => Some((Some(Runtime::Docker), name)),
            Parent::Libpod => None,
            Parent::Pod | Parent::Other => Some((None, name)),
        };
    }
    match name.rsplit_once('-') {
        // A scope of a runtime that is not in the list: `<prefix>-<id>.scope`.
        Some((_, id)) if scope && is_generated_id(id) => Some((None, id)),
        _ if matches!(parent, Parent::Pod) && is_id(name) => Some((None, name)),
        _ => None,
    }
}

/// The ids that containerd's CRI, CRI-O, Docker and Podman make: 256 random bits in hexadecimal digits.
pub(super) fn is_generated_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

struct KubepodsSlice {
    qos: Option<Qos>,
    pod_uid: Option<String>,
}

/// `kubepods`, or one of the slices that the systemd driver makes of it: `kubepods.slice`,
/// `kubepods-burstable.slice`, `kubepods-burstable-pod<uid>.slice`, each perhaps below another root
/// (`kubelet-kubepods...`).
fn kubepods_slice(component: &str) -> Option<KubepodsSlice> {
    if component == "kubepods" {
        return Some(KubepodsSlice { qos: None, pod_uid: None });
    }
    let name = component.strip_suffix(".slice")?;
    let mut rest = match name.strip_prefix("kubepods") {
        Some(rest) => rest,
        None => name.split_once("-kubepods")?.1,
    };
    let mut slice = KubepodsSlice { qos: None, pod_uid: None };
    for (suffix, qos) in [("-burstable", Qos::Burstable), ("-besteffort", Qos::BestEffort)] {
        if let Some(after) = rest.strip_prefix(suffix) {
            slice.qos = Some(qos);
            rest = after;
            break;
        }
    }
    if rest.is_empty() {
        return Some(slice);
    }
    // In a slice's name a dash means a level, so the kubelet writes the UID with underscores.
    let uid = rest.strip_prefix("-pod")?.replace('_', "-");
    slice.pod_uid = Some(uid).filter(|uid| is_pod_uid(uid));
    slice.pod_uid.is_some().then_some(slice)
}

fn qos(component: &str) -> Option<Qos> {
    match component {
        "burstable" => Some(Qos::Burstable),
        "besteffort" => Some(Qos::BestEffort),
        _ => None,
    }
}

/// A UUID, or the hash of a static Pod's manifest; tests use shorter ones.
fn is_pod_uid(uid: &str) -> bool {
    !uid.is_empty() && uid.len() <= 64 && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "eded29e6352b4dcdd7c180a1a997575c03ac0a73447d8f72947b32d9c9b1eacb";
    const OTHER: &str = "4be55f724a4c646c44da6628b237195d607a22f721c979f60f3f3eb279be99d7";
    const UID: &str = "6e0e4a3c-6f0d-4b0e-9c1b-0d4f8a4f3b11";
    const UID_: &str = "6e0e4a3c_6f0d_4b0e_9c1b_0d4f8a4f3b11";

    #[track_caller]
    fn check(path: &str, runtime: Option<Runtime>, id: Option<&str>, uid: Option<&str>, qos: Option<Qos>) {
        let found = parse(path);
        assert_eq!(
            (found.runtime, found.container_id, found.pod_uid.as_deref(), found.qos),
            (runtime, id, uid, qos),
            "{path}"
        );
    }

    #[test]
    fn kubernetes_with_both_drivers() {
        let (pod, best) = (Some(UID), Some(Qos::BestEffort));
        check(&format!("/kubepods/besteffort/pod{UID}/{ID}"), None, Some(ID), pod, best);
        check(&format!("/kubepods/pod{UID}/{ID}"), None, Some(ID), pod, Some(Qos::Guaranteed));
        check(
            &format!("/kubepods/burstable/pod{UID}/crio-{ID}"),
            Some(Runtime::CriO),
            Some(ID),
            pod,
            Some(Qos::Burstable),
        );
        check(&format!("/kubepods/besteffort/pod{UID}"), None, None, pod, best);
        let slice = format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice");
        check(&format!("{slice}/cri-containerd-{ID}.scope"), Some(Runtime::Containerd), Some(ID), pod, best);
        check(&format!("{slice}/crio-{ID}.scope"), Some(Runtime::CriO), Some(ID), pod, best);
        check(&format!("{slice}/docker-{ID}.scope"), Some(Runtime::Docker), Some(ID), pod, best);
        check(&format!("{slice}/kata-{ID}.scope"), None, Some(ID), pod, best);
        check(
            &format!("/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope"),
            Some(Runtime::Containerd),
            Some(ID),
            pod,
            Some(Qos::Guaranteed),
        );
        check(
            &format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope"
            ),
            Some(Runtime::Containerd),
            Some(ID),
            pod,
            best,
        );
        // A static Pod's UID is the hash of its manifest; a container's name may be chosen by hand.
        let hash = "7b5bd0d1c5f2fbc5c1f0a1b7b0a3d8de";
        check(&format!("/kubepods/burstable/pod{hash}/web"), None, Some("web"), Some(hash), Some(Qos::Burstable));
    }

    #[test]
    fn other_runtimes() {
        check(&format!("/docker/{ID}"), Some(Runtime::Docker), Some(ID), None, None);
        check(&format!("/system.slice/docker-{ID}.scope"), Some(Runtime::Docker), Some(ID), None, None);
        check(&format!("/machine.slice/libpod-{ID}.scope/container"), Some(Runtime::Podman), Some(ID), None, None);
        check(&format!("/libpod_parent/libpod-{ID}"), Some(Runtime::Podman), Some(ID), None, None);
        check(&format!("/libpod_parent/{OTHER}/libpod-{ID}"), Some(Runtime::Podman), Some(ID), None, None);
        check(
            &format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            Some(Runtime::Podman),
            Some(ID),
            None,
            None,
        );
        check(
            &format!("/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope"),
            Some(Runtime::Podman),
            Some(ID),
            None,
            None,
        );
        check(&format!("/system.slice/nerdctl-{ID}.scope"), Some(Runtime::Containerd), Some(ID), None, None);
        check("/system.slice/runc-my.app.scope", Some(Runtime::Runc), Some("my.app"), None, None);
        check(&format!("/ecs/0123/{ID}"), None, Some(ID), None, None);
        check(&format!("/../../docker/{ID} (deleted)"), Some(Runtime::Docker), Some(ID), None, None);
    }

    #[test]
    fn what_is_no_container() {
        for path in
            ["", "/", "/system.slice/nginx.service", "/default/plain1", "/docker", "/docker/buildkit/x1", "/pod1/x"]
        {
            check(path, None, None, None, None);
        }
        check(&format!("/machine.slice/libpod-conmon-{ID}.scope"), None, None, None, None);
        check(&format!("/system.slice/crio-conmon-{ID}.scope"), None, None, None, None);
        check(&format!("/docker/{}", ID.to_uppercase()), None, None, None, None);
        check(&format!("/kubepods/pod{UID}/..%2f"), None, None, Some(UID), Some(Qos::Guaranteed));
        check("/kubepods/podö/x", None, None, None, None);
    }

    #[test]
    fn the_outermost_container_wins() {
        let pod = format!("/kubepods/burstable/pod{UID}/{ID}");
        for below in [
            "/init.scope",
            "/system.slice/nginx.service",
            &format!("/docker/{OTHER}"),
            &format!("/kubepods/podx/{OTHER}"),
        ] {
            let path = format!("{pod}{below}");
            check(&path, None, Some(ID), Some(UID), Some(Qos::Burstable));
            assert_eq!(parse(&path).container, pod);
        }
        let libpod = format!("/machine.slice/libpod-{ID}.scope");
        assert_eq!(parse(&format!("{libpod}/container")).container, libpod);
    }

    fn component() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("kubepods".into()),
            Just("kubepods.slice".into()),
            Just("burstable".into()),
            Just("docker".into()),
            Just(format!("pod{UID}")),
            Just(ID.into()),
            Just("..".into()),
            "(cri-containerd-|crio-|crio-conmon-|libpod-|docker-|runc-)?[0-9a-f]{62,65}(\\.scope|\\.slice)?",
            "(.{0,4}-)?kubepods(-burstable)?-pod[0-9a-z_]{0,40}\\.slice",
            ".{0,12}",
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_read(path: String) {
            let _ = parse(&path);
        }

        #[test]
        fn what_is_found_is_part_of_the_path_and_safe(components in prop::collection::vec(component(), 0..8)) {
            let path = format!("/{}", components.join("/"));
            let found = parse(&path);
            prop_assert!(path.starts_with(found.container));
            if let Some(id) = found.container_id {
                prop_assert!(is_id(id));
                prop_assert!(found.container.contains(id));
                // Nothing below the container changes what it is.
                let below = format!("{}/docker/{OTHER}", found.container);
                prop_assert_eq!(parse(&below).container_id, Some(id));
            }
            if let Some(uid) = &found.pod_uid {
                prop_assert!(is_pod_uid(uid));
            }
        }
    }
}
