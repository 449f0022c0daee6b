//! A node's network of a test's own, and Pods behind interfaces of theirs, as the `ptp` plugin of CNI makes them.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::Container;

/// The node's addresses.
const NODE: (&str, &str) = ("10.77.0.1", "fd77::1");

/// A network namespace that the current thread is in from now on, and with it all that it starts: agents, containers, clients. It
/// goes with the last of them.
#[derive(Debug)]
pub struct Network {
    next: AtomicU8,
}

/// A Pod's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// IPv4
    pub four: Ipv4Addr,
    /// IPv6
    pub six: Ipv6Addr,
}

impl Network {
    /// The node's address, as Pods see it.
    pub const NODE: &str = NODE.0;

    /// Takes the current thread into a new network.
    ///
    /// # Errors
    /// Not root.
    pub fn enter() -> Result<Self> {
        // SAFETY: only the thread's network changes.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("making a network namespace")?;
        ip("link set lo up")?;
        Ok(Self { next: AtomicU8::new(2) })
    }

    /// Leads an address out of the network that is nobody's there: a service's, before it is translated.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn route(&self, address: &str) -> Result<()> {
        ip(&format!("route add {address}/32 dev lo src {}", NODE.0))
    }

    /// Lets Pods reach each other.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forward(&self) -> Result<()> {
        for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            fs::write(path, "1").with_context(|| path.to_owned())?;
        }
        Ok(())
    }

    /// The hardware's address of the node's end of a Pod's interface.
    ///
    /// # Errors
    /// It is gone.
    pub fn mac_of(&self, pod: &Addresses) -> Result<String> {
        let [.., number] = pod.four.octets();
        let output = Command::new("ip").args(["-brief", "link", "show", &format!("pod{number}")]).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.split_whitespace().nth(2).context("an address")?.to_owned())
    }

    /// Gives a container an interface `eth0`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn connect(&self, container: &Container) -> Result<Addresses> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (four, six) = (Ipv4Addr::new(10, 77, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()));
        let (node, pid, name) = (NODE, container.pid(), format!("pod{number}"));
        ip(&format!("link add {name} type veth peer name eth0 netns {pid}"))?;
        for command in [
            format!("address add {}/32 dev {name}", node.0),
            format!("address add {}/128 dev {name} nodad", node.1),
            format!("link set {name} up"),
            format!("route add {four}/32 dev {name} src {}", node.0),
            format!("route add {six}/128 dev {name} src {}", node.1),
        ] {
            ip(&command)?;
        }
        for command in [
            "link set lo up".to_owned(),
            format!("address add {four}/32 dev eth0"),
            format!("address add {six}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("route add {}/32 dev eth0", node.0),
            format!("route add default via {} dev eth0", node.0),
            format!("route add {}/128 dev eth0", node.1),
            format!("route add default via {} dev eth0", node.1),
        ] {
            let arguments = format!("--net=/proc/{pid}/ns/net ip {command}");
            run("nsenter", &arguments)?;
        }
        Ok(Addresses { four, six })
    }
}

/// Sockets of a container's network that are neither listening nor gone, a line each.
///
/// # Errors
/// The container is gone.
pub fn sockets(container: &Container) -> Result<String> {
    let network = format!("--net=/proc/{}/ns/net", container.pid());
    let output = Command::new("nsenter").args([&network, "ss", "-Htan", "state", "connected"]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn ip(arguments: &str) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program).args(arguments.split(' ')).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
