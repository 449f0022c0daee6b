//! Which interfaces of the node lead to a Pod: those whose other end is in the Pod's network namespace, as the kernel tells
//! (`rtnetlink(7)`: `RTM_GETNSID`, `IFLA_LINK_NETNSID`), whatever plugin has made them and whatever they are called.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// The answer is not consistent (`include/uapi/linux/netlink.h`).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Room for one answer of a dump (`NLMSG_GOODSIZE` and more).
const ANSWER: usize = 64 * 1024;

/// Why no interface of the node leads to a Pod.
#[derive(Debug, thiserror::Error)]
pub enum NoInterface {
    /// No process is there that tells.
    #[error("no process of it runs")]
    NoProcess,
    /// It has none of its own.
    #[error("it is in the node's network (hostNetwork), whose requests can't be told from those of others")]
    HostNetwork,
    /// None that this network knows.
    #[error(
        "no interface of the agent's network leads to it: the agent has to be in the node's network (hostNetwork: true), and \
         the Pod behind a veth"
    )]
    NotFound,
    /// The kernel does not answer.
    #[error("rtnetlink: {0}")]
    Kernel(#[from] io::Error),
}

/// What leads to a Pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ways {
    /// Indices of interfaces of the agent's network.
    pub interfaces: Vec<u32>,
    /// The number that this network has for the Pod's.
    pub network: u32,
}

/// The inode of the network namespace of a process, or of the agent itself (`self`).
///
/// # Errors
/// There is no such process, or it is not for the agent to see.
pub fn network_of(process: &str) -> io::Result<u64> {
    fs::metadata(format!("/proc/{process}/ns/net")).map(|metadata| metadata.ino())
}

/// What leads to Pods, by the directories of their cgroups; or why nothing does.
pub fn of_pods<'a>(pods: impl IntoIterator<Item = (u64, &'a Path)>) -> Vec<(u64, Result<Ways, NoInterface>)> {
    let mut links = None;
    pods.into_iter().map(|(cgroup, path)| (cgroup, of_pod(path, &mut links))).collect()
}

/// The name of an interface; `None` when it is gone.
#[must_use]
pub fn name(index: u32) -> Option<String> {
    netdevice::index_to_name(socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?, index).ok()
}

type Links = BTreeMap<i32, Vec<u32>>;

fn of_pod(path: &Path, links: &mut Option<Links>) -> Result<Ways, NoInterface> {
    let pid = process(path).ok_or(NoInterface::NoProcess)?;
    let network = network_of(&pid.to_string()).map_err(|_| NoInterface::NoProcess)?;
    // Seen from a network of the agent's own, its interface leads to the node's, and to all Pods that are in that.
    if network == network_of("self")? || network_of("1").is_ok_and(|node| node == network) {
        return Err(NoInterface::HostNetwork);
    }
    // The kernel gives a network its number when it tells of an interface that leads there.
    let links = match links {
        Some(links) => links,
        None => links.insert(all_links()?),
    };
    let number = namespace_id(pid)?.ok_or(NoInterface::NotFound)?;
    let interfaces = links.get(&number).cloned().ok_or(NoInterface::NotFound)?;
    Ok(Ways { interfaces, network: number.cast_unsigned() })
}

/// A process of a cgroup, or of one below it.
fn process(path: &Path) -> Option<u32> {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // Processes of namespaces that are not below the agent's own are told as 0.
    let own = own.lines().filter_map(|line| line.parse().ok()).find(|pid| *pid != 0);
    own.or_else(|| {
        let below: Vec<PathBuf> = fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).collect();
        below.iter().filter(|path| path.is_dir()).find_map(|path| process(path))
    })
}

/// The number that the network of the agent has for that of a process; `None` when it has none, so that no interface of the one
/// has its other end in the other.
fn namespace_id(pid: u32) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Pid(pid));
    let mut id = None;
    request(RouteNetlinkMessage::GetNsId(message), 0, |answer| {
        if let RouteNetlinkMessage::NewNsId(message) = answer {
            id = message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            });
        }
    })?;
    Ok(id)
}

/// Interfaces whose other end is in another namespace, by the number of that.
fn all_links() -> io::Result<Links> {
    let mut links = Links::new();
    request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            let other_end = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkNetNsId(id) => Some(*id),
                _ => None,
            });
            if let Some(id) = other_end {
                links.entry(id).or_default().push(link.header.index);
            }
        }
    })?;
    Ok(links)
}

/// Asks the kernel, and takes its answers up to the last.
fn request(message: RouteNetlinkMessage, flags: u16, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        answer.clear();
        let len = socket.recv(&mut answer, 0)?;
        let mut rest = &answer[..len];
        while !rest.is_empty() {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}"));
            let this = NetlinkBuffer::new_checked(rest).map_err(invalid)?.length() as usize;
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(invalid)?;
            if message.header.flags & NLM_F_DUMP_INTR != 0 {
                // Interfaces came or went meanwhile, and one of the others may be missing.
                return Err(io::ErrorKind::Interrupted.into());
            }
            match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(()),
                NetlinkPayload::InnerMessage(inner) => take(inner),
                _ => {}
            }
            if !is_dump {
                return Ok(());
            }
            // Messages are aligned to four bytes (`NLMSG_ALIGN`).
            rest = rest.get(this.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
