//! The Debian packages that tasks need: one list.

use clap::ValueEnum;

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Compile the kernel programs and the agent.
    Build,
    /// Run the demo.
    Demo,
    /// Run the tests on this machine's kernel.
    Test,
    /// Run a Kubernetes cluster on this machine.
    Cluster,
    /// Run a Kafka broker beside the demo (`demo --kafka`).
    Kafka,
    /// Run the benchmarks.
    Bench,
    /// Put the agent under load for long.
    Soak,
    /// Check the sources.
    Lint,
    /// Boot other kernels in emulation.
    Vm,
}

use Purpose::{Bench, Build, Cluster, Demo, Kafka, Lint, Soak, Test, Vm};

/// How it is known that a package's content is there, however it was installed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Evidence {
    /// A program in `PATH` or a system folder.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

/// Something that may have to be installed.
#[derive(Debug)]
pub(crate) struct Package {
    /// Debian's name.
    pub(crate) name: &'static str,
    /// What shows that it is there.
    pub(crate) evidence: Evidence,
    /// Tasks that use it.
    pub(crate) purposes: &'static [Purpose],
    /// What is lost without it.
    pub(crate) why: &'static str,
}

/// Every package, except those of the eBPF compiler and linker, of which there is a choice.
pub(crate) const PACKAGES: &[Package] = &[
    package("gcc", Evidence::Program("cc"), &[Build], "links the agent"),
    package("libc6-dev", Evidence::File("/usr/include/stdio.h"), &[Build], "links the agent"),
    // librdkafka is built with the agent: its configure script, its C and its C++ part, with these two libraries.
    package("g++", Evidence::Program("c++"), &[Build], "compiles librdkafka"),
    package("make", Evidence::Program("make"), &[Build], "builds librdkafka"),
    package("pkg-config", Evidence::Program("pkg-config"), &[Build], "finds the libraries of librdkafka"),
    package("libssl-dev", Evidence::File("/usr/include/openssl/ssl.h"), &[Build], "TLS of librdkafka"),
    package("zlib1g-dev", Evidence::File("/usr/include/zlib.h"), &[Build], "gzip of librdkafka"),
    package("rust-web-clippy", Evidence::File("/usr/bin/clippy-driver"), &[Lint], "checks the kernel programs"),
    package("runc", Evidence::Program("runc"), &[Demo, Test, Bench, Soak, Vm, Cluster], "runs sample containers"),
    package(
        "busybox-static",
        Evidence::File("/bin/busybox"),
        &[Demo, Test, Bench, Soak, Vm, Cluster],
        "is in every sample container",
    ),
    package("bpftool", Evidence::Program("bpftool"), &[Test], "shows what a failed test left in the kernel"),
    package("docker.io", Evidence::Program("dockerd"), &[Test], "containers of Docker are tested"),
    package("containerd", Evidence::Program("containerd"), &[Test, Cluster], "runs the Pods of a cluster"),
    package("python3", Evidence::Program("python3"), &[Test, Soak], "writes numbered lines, and its logging is tested"),
    package(
        "default-jre-headless",
        Evidence::Program("java"),
        &[Test, Kafka, Bench, Soak],
        "runs the Kafka broker and log4j2",
    ),
    package("default-jdk-headless", Evidence::Program("javac"), &[Test, Bench, Soak], "runs the OpenSearch server"),
    package("maven", Evidence::Program("mvn"), &[Test, Kafka, Bench, Soak], "fetches Kafka, OpenSearch and log4j2"),
    package("openssl", Evidence::Program("openssl"), &[Test, Cluster], "makes certificates for servers"),
    package("python3-pip", Evidence::Program("pip3"), &[Test], "fetches OpenTelemetry's messages for Python"),
    package(
        "golang-go",
        Evidence::Program("go"),
        &[Test, Cluster],
        "builds Kubernetes, and Go's log package is tested",
    ),
    package("nodejs", Evidence::Program("node"), &[Test], "Node's streams are tested"),
    package(
        "nginx-light",
        Evidence::Program("nginx"),
        &[Test, Bench],
        "nginx's logs are tested, and its limits compared with",
    ),
    package("logrotate", Evidence::Program("logrotate"), &[Test], "rotation with copytruncate is tested"),
    package("prometheus", Evidence::Program("promtool"), &[Test], "checks alert rules and dashboards"),
    package("rsyslog", Evidence::Program("rsyslogd"), &[Bench], "is what we compare with"),
    package(
        "rsyslog-kafka",
        Evidence::File("/usr/share/doc/rsyslog-kafka/copyright"),
        &[Bench],
        "is what delivery to Kafka is compared with",
    ),
    package("etcd-server", Evidence::Program("etcd"), &[Test, Cluster], "keeps the objects of a cluster"),
    package(
        "containernetworking-plugins",
        Evidence::File("/usr/lib/cni/ptp"),
        &[Test, Cluster],
        "gives the Pods of a cluster their network",
    ),
    package(
        "conntrack",
        Evidence::Program("conntrack"),
        &[Test, Cluster],
        "is what kube-proxy forgets connections with",
    ),
    package("iptables", Evidence::Program("iptables"), &[Test, Cluster], "leads to the services of a cluster"),
    package(
        "iproute2",
        Evidence::Program("ip"),
        &[Demo, Test, Bench, Cluster],
        "connects Pods, and the nodes of a cluster",
    ),
    package(
        "util-linux",
        Evidence::Program("nsenter"),
        &[Demo, Test, Bench, Cluster],
        "gives Pods their network, and makes the nodes of a cluster",
    ),
    package("curl", Evidence::Program("curl"), &[Test], "is a client whose requests are limited"),
    package("qemu-system-x86", Evidence::Program("qemu-system-x86_64"), &[Vm], "emulates a machine"),
];

const fn package(name: &'static str, evidence: Evidence, purposes: &'static [Purpose], why: &'static str) -> Package {
    Package { name, evidence, purposes, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_a_purpose_and_a_reason() {
        for package in PACKAGES {
            assert!(!package.purposes.is_empty() && !package.why.is_empty(), "{package:?}");
        }
    }
}
