//! What the Kubernetes API server tells of the Pods of this node.
//!
//! All exchange with the API server is here. Everything else reads [`Pods`], a table that is always there: without an API
//! server it is empty, or as old as the last answer. Who a container is needs no server: see `attribute`.

pub(crate) mod client;
pub mod health;
mod meter;
mod owners;
mod pod;
mod pods;
mod projection;
mod saved;
mod settings;
mod watch;

use std::{error::Error, path::PathBuf, sync::Arc};

pub use self::{
    client::ClientError,
    health::Health,
    pod::{ANNOTATION_PREFIX, Labels, Owner, Pod},
    pods::Pods,
    projection::Projection,
    settings::{Enabled, Settings},
};
use crate::{config::Config, events::Event};

/// What is known of Kubernetes, and how it is found out.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    settings: Settings,
    node: Arc<str>,
    state_dir: PathBuf,
    /// Whether the API server is asked.
    is_on: bool,
    watches_namespaces: bool,
    pods: Arc<Pods>,
    health: Arc<Health>,
}

impl Kubernetes {
    /// What an agent before has saved. Nobody is asked yet: see [`Kubernetes::run`].
    ///
    /// # Errors
    /// The API server is to be asked, and nothing says where it is.
    pub fn open(config: &Config) -> Result<Self, ClientError> {
        let is_on = client::is_wanted(&config.kubernetes)?;
        let pods = Arc::new(Pods::default());
        let health = Arc::new(Health::default());
        let watches_namespaces = config.needs_namespaces();
        if is_on {
            saved::load(&config.state_dir, &pods);
            health.expect(watch::PODS);
            if watches_namespaces {
                health.expect(watch::NAMESPACES);
            }
        }
        Ok(Self {
            settings: config.kubernetes.clone(),
            node: Arc::clone(&config.node_name),
            state_dir: config.state_dir.clone(),
            is_on,
            watches_namespaces,
            pods,
            health,
        })
    }

    /// The Pods of this node.
    #[must_use]
    pub const fn pods(&self) -> &Arc<Pods> {
        &self.pods
    }

    /// How fresh they are.
    #[must_use]
    pub const fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Whether the API server is asked.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether it may be worth to wait for a Pod that is not known: the API server tells of changes, or has not been asked
    /// yet.
    #[must_use]
    pub fn may_tell(&self) -> bool {
        self.is_on && (self.health.is_live(watch::PODS) || self.health.is_starting(watch::PODS))
    }

    /// Follows what the API server tells, for ever; returns at once when nobody is to be asked.
    ///
    /// # Errors
    /// What keeps the client from being made.
    pub async fn run(self) -> Result<(), ClientError> {
        if !self.is_on {
            return Ok(());
        }
        let client = client::connect(&self.settings, &self.health).await.inspect_err(|error| {
            Event::KubernetesUnreachable { resource: watch::PODS, error: &error.to_string() }.report();
        })?;
        let (owners, questions) = owners::Owners::new();
        let (pods, health) = (self.pods, self.health);
        tokio::spawn(saved::keep(self.state_dir, Arc::clone(&pods)));
        tokio::spawn(owners::answer(client.clone(), questions, Arc::clone(&pods), Arc::clone(&health)));
        if self.watches_namespaces {
            tokio::spawn(watch::namespaces(client.clone(), Arc::clone(&pods), Arc::clone(&health)));
        }
        let projection = Projection::new(&self.settings);
        watch::pods(client, &self.node, pods, health, projection, owners).await;
        Ok(())
    }
}

/// An error with its causes, which say what has happened.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let this = error.to_string();
        if !text.contains(&this) {
            text = format!("{text}: {this}");
        }
        cause = error.source();
    }
    text
}
