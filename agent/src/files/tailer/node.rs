//! The node's own files: found by globs, followed over renames.

use std::{path::Path, sync::Arc};

use super::{Tailer, enqueue};
use crate::{
    clock::unix_nano,
    files::{
        find,
        log_file::{About, LogFile},
        open::{self, birth},
        server,
    },
    load::running::inode_key,
    record::Class,
};

impl Tailer {
    /// Looks for the node's own files.
    pub(super) fn scan(&mut self, now: u64) {
        let root = self.settings.host_root.clone();
        for path in server::find(&self.settings.server.files, &root) {
            let Ok(file) = open::open_below(&root, &path) else { continue };
            self.enter_server(path.into(), file, now);
        }
        if !self.scanned {
            self.scanned = true;
            self.find_renamed(&root, now);
        }
    }

    pub(super) fn enter_server(&mut self, path: Arc<str>, file: std::fs::File, now: u64) {
        let Ok(metadata) = file.metadata() else { return };
        let id = (Class::Server, inode_key(&metadata));
        if self.files.contains_key(&id) {
            return;
        }
        // What appears later is new, where the file system does not know when it was made.
        let first = if self.scanned && birth(&file) == 0 { 0 } else { metadata.len() };
        let (position, incarnation) = self.start_of(&id, &file, Some(self.settings.server.files.start_at), first, now);
        let about = About {
            key: id.1,
            class: Class::Server,
            declared_class: None,
            path,
            resource: Arc::clone(&self.settings.node),
            account: Arc::clone(&self.settings.node_account),
            lines: Arc::clone(self.settings.server_lines.compiled()),
        };
        let mut log = LogFile::new(about, Some(file), position, incarnation, &self.readings);
        self.progress.open(&log.stream().key, position);
        log.look(now);
        self.enter(id, log, Vec::new(), now, false);
    }

    /// Goes on in files of the node that were renamed while no agent ran.
    pub(super) fn find_renamed(&mut self, root: &Path, now: u64) {
        let missing: Vec<_> = self
            .remembered
            .iter()
            .filter(|(id, _)| id.0 == Class::Server && !self.files.contains_key(id))
            .map(|(id, (_, pending))| (*id, pending.entry.path.clone()))
            .collect();
        for (id, path) in missing {
            if self.settings.server.files.matches(&path)
                && let Some(file) = find::again(root, &path, &id.1, None)
            {
                self.enter_server(path.into(), file, now);
            }
        }
    }

    pub(super) fn reload(&mut self, server: crate::config::Server, lines: crate::config::Lines) {
        let now = unix_nano();
        for (id, open) in self.files.iter_mut().filter(|(id, _)| id.0 == Class::Server) {
            // Lines that are cut in another way begin after the ones that are under way.
            let other = !server.files.matches(&open.log.about.path) || lines != self.settings.server_lines;
            if other {
                open.log.look(now);
                open.ending = true;
                enqueue(&mut self.queue, *id, open);
            }
        }
        self.settings.server = server;
        self.settings.server_lines = lines;
        self.next_scan = 0;
    }
}
