//! A container's terminal: `runc` makes it and hands its master over a socket, as to containerd's shim.

use std::{
    fs::File,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
};

use anyhow::{Context, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Takes the master that `runc create --console-socket` has sent.
///
/// # Errors
/// Nothing was sent.
pub(super) fn receive(listener: &UnixListener) -> Result<File> {
    let (stream, _) = listener.accept().context("accepting the console")?;
    Ok(File::from(receive_descriptor(&stream)?))
}

fn receive_descriptor(stream: &UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // The message itself is the terminal's name.
    let mut name = [0; 4096];
    recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .context("receiving the console")?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.flatten().next().context("runc sent no console")
}
