//! Which names Pods and policies of namespaces may choose.

use serde::{Deserialize, Serialize};

use crate::{
    config::{Globs, Slash},
    record::{Chosen, Resource},
};

/// Stands for the namespace of the Pod.
const NAMESPACE: &str = "{namespace}";

/// Globs over names; `{namespace}` in them is the namespace of the Pod, so that each can be given its own. None by default.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Allowed(Vec<String>);

impl Allowed {
    /// The name that is declared for records of `resource`: the first in precedence that may be.
    #[must_use]
    pub fn permitted<'a>(&self, declared: Option<&'a Chosen>, resource: &Resource) -> Option<&'a str> {
        let is_permitted =
            |chosen: &&Chosen| chosen.by_administrator || self.permits(&chosen.name, resource.namespace.as_deref());
        let mut declared = std::iter::successors(declared, |chosen| chosen.otherwise.as_deref());
        declared.find(is_permitted).map(|chosen| &*chosen.name)
    }

    /// Whether a Pod of `namespace` may choose `name`.
    #[must_use]
    pub fn permits(&self, name: &str, namespace: Option<&str>) -> bool {
        let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '-';
        // What is no name of a namespace can't lead out of a glob.
        let namespace = namespace.filter(|namespace| !namespace.is_empty() && namespace.chars().all(is_plain));
        let globs = self.0.iter().filter_map(|glob| match namespace {
            Some(namespace) => Some(glob.replace(NAMESPACE, namespace)),
            None => (!glob.contains(NAMESPACE)).then(|| glob.clone()),
        });
        Globs::new(&globs.collect::<Vec<_>>(), Slash::IsPlain).is_ok_and(|globs| globs.is_match(name))
    }
}

impl TryFrom<Vec<String>> for Allowed {
    type Error = String;

    fn try_from(globs: Vec<String>) -> Result<Self, String> {
        let filled: Vec<_> = globs.iter().map(|glob| glob.replace(NAMESPACE, "x")).collect();
        match Globs::new(&filled, Slash::IsPlain) {
            Ok(_) => Ok(Self(globs)),
            Err(errors) => Err(errors.into_iter().next().map(|(_, error)| error).unwrap_or_default()),
        }
    }
}

impl From<Allowed> for Vec<String> {
    fn from(allowed: Allowed) -> Self {
        allowed.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(globs: &[&str]) -> Allowed {
        globs.iter().map(ToString::to_string).collect::<Vec<_>>().try_into().expect("globs")
    }

    #[test]
    fn each_namespace_has_its_own_names_and_none_without_leave() {
        assert!(!Allowed::default().permits("x", Some("shop")));
        let own = allowed(&["{namespace}.*", "shared-{a,b}"]);
        assert!(own.permits("shop.orders", Some("shop")) && own.permits("shared-a", Some("shop")));
        assert!(!own.permits("bank.orders", Some("shop")) && !own.permits("shared-c", Some("shop")));
        assert!(own.permits("shared-b", None) && !own.permits("shop.orders", None));
        assert!(!own.permits("shop.orders", Some("*")), "what is no namespace is no glob either");
        assert!(Allowed::try_from(vec!["{".to_owned()]).is_err());
    }
}
