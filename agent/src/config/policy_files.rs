//! Policies in files: the same documents that Kubernetes takes, several in a file if they are many.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    ConfigError, Report,
    at_rest::at_rest,
    display_name,
    interpret::interpret,
    load::read_text_of,
    report::{MAX_PROBLEMS, Problem},
    tree::{Entry, Node, Value},
};
use crate::policy::{
    Policies, Policy,
    precedence::Key,
    resource::{ClusterSidestepPolicy, SidestepPolicy},
};

/// Bytes of a file.
const MAX_BYTES: u64 = 16 << 20;
/// Values of a document: a list of networks may be long.
const MAX_NODES: usize = 1_000_000;
/// Extensions of the files of a directory that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The version of the resources.
const API_VERSION: &str = "sidestep.dev/v1alpha1";

/// What says what a document is.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Kind {
    kind: String,
    api_version: String,
}

/// Reads files, and the files of directories in the order of their names.
///
/// # Errors
/// The first file that can't be read or is wrong, with all that is wrong with it.
pub fn read(paths: &[PathBuf]) -> Result<Policies, ConfigError> {
    parse_all(&texts(paths)?)
}

/// As [`read`], when nobody is writing them.
///
/// # Errors
/// As those of [`read`], or the files do not come to rest.
pub fn read_at_rest(paths: &[PathBuf]) -> Result<Policies, String> {
    let texts = || texts(paths).map_err(|error| error.to_string());
    let texts = at_rest(texts, |_| true)?.ok_or("the files of policies do not come to rest")?;
    parse_all(&texts).map_err(|error| error.to_string())
}

/// The names and texts of all files.
///
/// # Errors
/// The first file that can't be read.
pub fn texts(paths: &[PathBuf]) -> Result<Vec<(String, String)>, ConfigError> {
    Ok(files_of(paths)?.into_iter().map(|(file, text)| (display_name(&file), text)).collect())
}

/// All files, with their texts.
///
/// # Errors
/// The first file that can't be read.
pub fn files_of(paths: &[PathBuf]) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let mut texts = Vec::new();
    for path in paths {
        for file in files(path)? {
            let (_, text) = read_text_of(&file, MAX_BYTES)?;
            texts.push((file, text));
        }
    }
    Ok(texts)
}

/// A policy as it was written.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its name.
    pub key: Key,
    /// Its text, with the comments.
    pub text: String,
    /// The file that it comes from; `-` for standard input.
    pub origin: PathBuf,
}

/// The policies of files, and of the files of directories, and each on its own.
///
/// # Errors
/// As those of [`read`]; several policies in one document are no document of one.
pub fn documents_of(paths: &[PathBuf]) -> Result<(Policies, Vec<Document>), ConfigError> {
    let files = files_of(paths)?;
    let texts: Vec<_> = files.iter().map(|(file, text)| (display_name(file), text.clone())).collect();
    let policies = parse_all(&texts)?;
    let mut all = Vec::new();
    for ((file, text), (name, _)) in files.iter().zip(&texts) {
        let mut start = 0;
        for document in documents(text) {
            let (span, mut policies) = (start..start + document.len(), Policies::default());
            start = span.end;
            parse(name, document, &mut policies)?;
            let keys: Vec<_> = policies.all().map(|policy| policy.key.clone()).collect();
            match &keys[..] {
                [] => {}
                [key] => {
                    let text = document.strip_prefix("---\n").unwrap_or(document).to_owned();
                    all.push(Document { key: key.clone(), text, origin: file.clone() });
                }
                _ => {
                    let message = "a List is no policy: give its items, with a line `---` between them".to_owned();
                    let problem = Problem { path: "kind".to_owned(), span: Some(span), message, help: None };
                    let report = Report { file: name.clone(), text: text.clone(), problems: vec![problem] };
                    return Err(ConfigError::Invalid(Box::new(report)));
                }
            }
        }
    }
    Ok((policies, all))
}

/// The policies of all these texts.
///
/// # Errors
/// All that is wrong with the first that is wrong.
pub fn parse_all(texts: &[(String, String)]) -> Result<Policies, ConfigError> {
    let mut policies = Policies::default();
    for (name, text) in texts {
        parse(name, text, &mut policies)?;
    }
    Ok(policies)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    if path == Path::new("-") || !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let is_policy = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file()
    };
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(is_policy).collect();
    files.sort();
    Ok(files)
}

/// Adds the documents of a text to `policies`; `name` is what errors call it.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(name: &str, text: &str, policies: &mut Policies) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    let mut start = 0;
    for document in documents(text) {
        let end = start + document.len();
        read_document(document, policies, &mut |mut problem: Problem| {
            problem.span = problem.span.map(|span| span.start + start..span.end + start);
            if problems.len() < MAX_PROBLEMS {
                problems.push(problem);
            }
        });
        start = end;
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
    Err(ConfigError::Invalid(Box::new(Report { file: name.to_owned(), text: text.to_owned(), problems })))
}

/// The documents of a text, each with the line that it begins with.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    let begins = text.match_indices("---").map(|(at, _)| at);
    let is_line = |at: &usize| {
        (*at == 0 || text.as_bytes()[at - 1] == b'\n') && text[at + 3..].starts_with(['\n', '\r', ' ', '#'])
    };
    let cuts: Vec<_> = [0].into_iter().chain(begins.filter(is_line)).chain([text.len()]).collect();
    cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect::<Vec<_>>().into_iter()
}

fn read_document(text: &str, policies: &mut Policies, note: &mut dyn FnMut(Problem)) {
    match Node::parse_of(text, MAX_NODES) {
        Ok(tree) if tree.value == Value::Null => {}
        Ok(tree) => read_node(&tree, policies, note),
        Err(problem) => note(problem),
    }
}

fn read_node(tree: &Node, policies: &mut Policies, note: &mut dyn FnMut(Problem)) {
    let at = |path: &str, message: String, help: Option<&str>| Problem {
        path: path.to_owned(),
        span: Some(tree.locate(path)),
        message,
        help: help.map(str::to_owned),
    };
    let Kind { kind, api_version } = interpret::<Kind>(tree).value.unwrap_or_default();
    // As `kubectl get -o yaml` prints several.
    if (kind.as_str(), api_version.as_str()) == ("List", "v1")
        && let Value::Mapping(entries) = &tree.value
        && let Some(Entry { node: Node { value: Value::Sequence(items), .. }, .. }) =
            entries.iter().find(|entry| entry.key == "items")
    {
        return items.iter().for_each(|item| read_node(item, policies, note));
    }
    if api_version != API_VERSION {
        return note(at(
            "apiVersion",
            "this is no policy of Sidestep".to_owned(),
            Some("apiVersion: sidestep.dev/v1alpha1"),
        ));
    }
    // The types of the resources do not have these two.
    let mut content = tree.clone();
    if let Value::Mapping(entries) = &mut content.value {
        entries.retain(|entry| !["apiVersion", "kind"].contains(&entry.key.as_str()));
    }
    let policy = match kind.as_str() {
        "SidestepPolicy" => whole::<SidestepPolicy>(&content, note).map(|policy| {
            let is_placed = policy.metadata.namespace.is_some();
            (is_placed, policy.metadata.name.is_some(), Policy::namespaced(&policy))
        }),
        "ClusterSidestepPolicy" => whole::<ClusterSidestepPolicy>(&content, note).map(|policy| {
            (policy.metadata.namespace.is_none(), policy.metadata.name.is_some(), Policy::cluster(&policy))
        }),
        other => {
            let message = format!("`{other}` is no kind of policy");
            return note(at("kind", message, Some("SidestepPolicy or ClusterSidestepPolicy")));
        }
    };
    let Some((is_placed, is_named, policy)) = policy else { return };
    if !is_placed {
        let message = match kind.as_str() {
            "SidestepPolicy" => "`metadata.namespace` is missing: a SidestepPolicy is for Pods of one namespace",
            _ => "a ClusterSidestepPolicy is in no namespace",
        };
        return note(at("metadata.namespace", message.to_owned(), None));
    }
    if !is_named {
        return note(at("metadata.name", "`metadata.name` is missing".to_owned(), None));
    }
    match policy {
        Ok(policy) if policies.contains(&policy.key) => {
            note(at(
                "metadata.name",
                format!("{} stands in these files twice", policy.key),
                Some("rename one of them"),
            ));
        }
        Ok(policy) => {
            policies.insert(Ok(policy));
        }
        Err(refused) => {
            for problem in &refused.problems {
                let (path, message) = problem.split_once(": ").unwrap_or(("", problem));
                note(at(path, message.to_owned(), None));
            }
        }
    }
}

fn whole<T: serde::de::DeserializeOwned>(tree: &Node, note: &mut dyn FnMut(Problem)) -> Option<T> {
    let reading = interpret::<T>(tree);
    let is_whole = reading.problems.is_empty();
    reading.problems.into_iter().for_each(note);
    reading.value.filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
# What the shop may reach.
apiVersion: sidestep.dev/v1alpha1
kind: SidestepPolicy
metadata: {name: shop, namespace: shop}
spec:
  selector: {}
  traffic:
    allow:
      egress:
        - cidrs: [10.0.0.0/8]
          ports: [{port: 443}]
---
apiVersion: sidestep.dev/v1alpha1
kind: ClusterSidestepPolicy
metadata: {name: all}
spec:
  selector: {}
  traffic:
    limits:
      connectionsOut: {perSecond: 100}
";

    fn told(text: &str) -> String {
        parse("shop.yaml", text, &mut Policies::default()).expect_err("wrong").to_string()
    }

    #[test]
    fn documents_are_policies() {
        let mut policies = Policies::default();
        parse("shop.yaml", GOOD, &mut policies).expect("they are right");
        let names: Vec<_> = policies.all().map(|policy| policy.key.to_string()).collect();
        assert_eq!(names, ["ClusterSidestepPolicy all", "SidestepPolicy shop/shop"]);
    }

    #[test]
    fn a_list_of_kubectl_is_its_items() {
        let items: Vec<_> =
            GOOD.split("---\n").map(|text| format!("- {}", text.trim_end().replace('\n', "\n  "))).collect();
        let list = format!("apiVersion: v1\nkind: List\nitems:\n{}\n", items.join("\n"));
        let mut policies = Policies::default();
        parse("-", &list, &mut policies).unwrap_or_else(|error| panic!("{error}\n{list}"));
        assert_eq!(policies.all().count(), 2);
        let error = told(&list.replace("perSecond: 100", "perSecond: 0"));
        assert!(error.contains("from 1 to"), "{error}");
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        assert!(
            told(&GOOD.replace("10.0.0.0/8", "10.0.0.1/8")).contains("shop.yaml:10:"),
            "{}",
            told(&GOOD.replace("10.0.0.0/8", "10.0.0.1/8"))
        );
        let error = told(&GOOD.replace("perSecond: 100", "perSecond: 0"));
        assert!(error.contains("shop.yaml:20:") && error.contains("from 1 to"), "{error}");
        let error = told(&GOOD.replace("egress", "egres"));
        assert!(error.contains("shop.yaml:9:") && error.contains("unknown option `egres`"), "{error}");
        let dated =
            |date: &str| GOOD.replace("  traffic:\n    allow", &format!("  traffic:\n    notAfter: {date}\n    allow"));
        parse("shop.yaml", &dated("2026-03-01T00:00:00+01:00"), &mut Policies::default()).expect("a time");
        for wrong in ["tomorrow", "2026-03-01", "2026-03-01T00:00:00"] {
            let error = told(&dated(wrong));
            assert!(error.contains("shop.yaml:8:15: spec.traffic.notAfter: ") && error.contains("RFC 3339"), "{error}");
        }
        assert!(told("kind: Pod\n").contains("no policy of Sidestep"));
        let error = told(&GOOD.replace("kind: SidestepPolicy", "kind: Policy"));
        assert!(error.contains("shop.yaml:3:7: kind: `Policy` is no kind of policy"), "{error}");
        assert!(told(&GOOD.replace(", namespace: shop", "")).contains("`metadata.namespace` is missing"));
        assert!(told(&format!("{GOOD}---\n{GOOD}")).contains("stands in these files twice"));
    }
}
