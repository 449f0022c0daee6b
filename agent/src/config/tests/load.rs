//! Files as they come, and what is taken from around them.

use std::{fs, io::Write, path::Path};

use super::environment;
use crate::config::{Config, ConfigError, Environment, LogLevel, Raw};

#[test]
fn an_empty_file_is_all_defaults() {
    for text in ["", "\n", "# only a comment\n", "---\n", "capture:\nlines:\n", "{}"] {
        let (raw, config) =
            Raw::parse("sidestep.yaml", text, &environment()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!(raw, Raw { node_name: Some("node-1".to_owned()), ..Raw::default() }, "{text:?}");
        assert_eq!(&*config.node_name, "node-1");
        assert_eq!(config.capture.ring_size.get(), 16 << 20);
    }
}

#[test]
fn a_name_comes_from_the_file_then_the_environment_then_the_kernel() {
    let environment = Environment { node_name: Some("from-env".to_owned()), host_name: Some("kernel".to_owned()) };
    let name = |text| Raw::parse("f", text, &environment).expect("valid").1.node_name;
    assert_eq!(&*name("node_name: typed"), "typed");
    assert_eq!(&*name(""), "from-env");
    let error = Config::defaults(&Environment::default()).expect_err("no name");
    assert!(error.to_string().contains("node_name: neither the configuration"), "{error}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("sidestep.yaml");
    let load = |path: &Path| Config::load(path, &environment()).expect_err("refused");
    let missing = load(&path);
    assert!(matches!(&missing, ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    assert!(missing.to_string().contains(&path.display().to_string()), "{missing}");
    let is_directory = load(directory.path());
    assert!(
        matches!(&is_directory, ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::IsADirectory)
    );
    // Root reads what has no permissions; a descriptor that was opened for writing alone refuses root too.
    let closed = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path).expect("made");
    let not_readable = load(Path::new("/proc/self/mem"));
    assert!(matches!(not_readable, ConfigError::Read { .. }), "{not_readable}");
    drop(closed);
    fs::write(&path, b"log:\n  level: \xffinfo\n").expect("written");
    let not_text = load(&path);
    assert!(matches!(not_text, ConfigError::NotText { line: 2, column: 10, byte: 0xff, .. }), "{not_text}");
    let mut file = fs::File::create(&path).expect("made");
    for _ in 0..10 {
        file.write_all(&vec![b'#'; 1 << 20]).expect("written");
    }
    let large = load(&path);
    assert!(matches!(large, ConfigError::TooLarge { .. }), "{large}");
    assert!(large.render(false).starts_with("error: the configuration"), "{}", large.render(false));
    fs::write(&path, "\u{feff}log:\r\n  level: warn\r\n").expect("written");
    assert_eq!(Config::load(&path, &environment()).expect("valid").log.level, LogLevel::Warn);
    fs::write(&path, "").expect("written");
    assert!(Config::load(&path, &environment()).is_ok());
}
