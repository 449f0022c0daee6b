use std::time::{Duration, SystemTime};

use clap::CommandFactory;

use super::{
    logs::{LogsFormat, Since},
    *,
};
use crate::record::Class;

fn parse(arguments: &str) -> Result<Command, String> {
    let arguments = std::iter::once("sidestep").chain(arguments.split_whitespace());
    Cli::try_parse_from(arguments).map(|cli| cli.command).map_err(|error| error.to_string())
}

fn every_command(command: &clap::Command, path: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
    visit(path, command);
    for inner in command.get_subcommands() {
        every_command(inner, &format!("{path} {}", inner.get_name()), visit);
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn logs_takes_conditions_typed() {
    let Ok(Command::Logs(logs)) =
        parse("logs -f --pod cart-* -n shop -c app --class business --since 10m --grep ^E[0-9] -o json")
    else {
        panic!("logs")
    };
    assert!(logs.follow);
    assert_eq!(logs.pod.as_deref(), Some("cart-*"));
    assert_eq!((logs.namespace.as_deref(), logs.container.as_deref()), (Some("shop"), Some("app")));
    assert_eq!(logs.class, Some(Class::Business));
    assert_eq!(logs.since, Some(Since::Ago(Duration::from_secs(600))));
    assert!(logs.grep.expect("given").is_match(b"E5 \xff"));
    assert_eq!(logs.output, LogsFormat::Json);
}

#[test]
fn policies_are_named_with_or_without_their_namespace() {
    use super::policy::{DeleteArgs, PolicyArgs, What};
    let Ok(Command::Policy(PolicyArgs { what: What::Delete(DeleteArgs { policies, how }) })) =
        parse("policy delete shop/web every-pod --timeout 3s --dry-run")
    else {
        panic!("delete")
    };
    let names: Vec<_> = policies.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["SidestepPolicy shop/web", "ClusterSidestepPolicy every-pod"]);
    assert_eq!((how.timeout, how.dry_run), (Duration::from_secs(3), true));
    for wrong in
        ["policy delete", "policy delete shop/", "policy delete a/b/c", "policy apply", "policy apply x --timeout 1"]
    {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn since_is_a_duration_or_a_time() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let at = |text: &str| text.parse::<Since>().map(|since| since.resolve(now));
    assert_eq!(at("1h"), Ok(now - Duration::from_secs(3600)));
    assert_eq!(at("1970-01-02T00:00:00Z"), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(86400)));
    assert_eq!(at("1970-01-02 00:00:00"), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(86400)));
    assert_eq!(at("1000years"), Ok(SystemTime::UNIX_EPOCH));
    for text in ["", "10", "yesterday", "-5m"] {
        assert_eq!(text.parse::<Since>(), Err(logs::SinceError), "{text}");
    }
}

#[test]
fn wrong_arguments_say_what_is_allowed() {
    for (arguments, parts) in [
        ("logs --class pods", &["pods", "pod, business, server", "similar value"][..]),
        ("logs --grep (", &["--grep", "unclosed group"]),
        ("logs --since soon", &["--since", "such as `10m`"]),
        ("status --watch --interval 5", &["--interval", "time unit"]),
        ("status --watch --interval 0s", &["--interval", "the shortest is `100ms`"]),
        ("status --watch --interval 99ms", &["the shortest is `100ms`"]),
        ("status --interval 1s", &["--watch"]),
        ("cofnig", &["unrecognized subcommand", "config"]),
        ("completions tcsh", &["bash", "fish", "zsh"]),
        ("config --example check x", &["cannot be used with"]),
    ] {
        let error = parse(arguments).expect_err(arguments);
        for part in parts {
            assert!(error.contains(part), "{arguments}: {part:?} is missing in {error}");
        }
    }
}

#[test]
fn every_command_and_argument_has_help() {
    every_command(&Cli::command(), "sidestep", &mut |path, command| {
        assert!(command.get_about().is_some(), "{path} says nothing about itself");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
        }
    });
}

#[test]
fn the_examples_in_the_help_parse() {
    let mut count = 0;
    every_command(&Cli::command(), "sidestep", &mut |path, command| {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().map(str::trim).filter(|line| line.starts_with("sidestep ")) {
            // An example ends where its explanation or the rest of a shell's pipeline begins.
            let end = ["  ", " |", " >"].iter().filter_map(|mark| line.find(mark)).min().unwrap_or(line.len());
            let words = line[..end].split(' ').map(|word| word.trim_matches('\''));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{path}: {line}: {error}"));
            count += 1;
        }
    });
    assert!(count >= 15, "{count}");
}

#[test]
fn completions_name_every_command_in_every_shell() {
    for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
        let mut script = Vec::new();
        completions::CompletionsArgs { shell: *shell }.execute(&mut script).expect("written");
        let script = String::from_utf8(script).expect("text");
        for command in Cli::command().get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
    }
}

#[test]
fn man_writes_a_page_for_each_command() {
    let directory = tempfile::tempdir().expect("directory");
    let out = directory.path().join("man1");
    man::ManArgs { out: Some(out.clone()) }.execute(&mut Vec::new()).expect("written");
    for command in Cli::command().get_subcommands() {
        let page = out.join(format!("sidestep-{}.1", command.get_name()));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".TH"), "{text}");
    }
    let mut page = Vec::new();
    man::ManArgs { out: None }.execute(&mut page).expect("written");
    assert!(String::from_utf8_lossy(&page).contains("sidestep\\-doctor"));
    let blocked = directory.path().join("file");
    std::fs::write(&blocked, "").expect("written");
    assert!(man::ManArgs { out: Some(blocked) }.execute(&mut Vec::new()).is_err());
}

#[test]
fn the_version_is_the_crates() {
    let mut output = Vec::new();
    version::VersionArgs { output: Format::Json }.execute(&mut output).expect("written");
    let json: serde_json::Value = serde_json::from_slice(&output).expect("JSON");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
    assert!(ignore_closed_pipe(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
    assert!(ignore_closed_pipe(Err(io::ErrorKind::StorageFull.into())).is_err());
}

/// Exit code, standard output and standard error of `sidestep config ...`.
fn run_config(action: Option<config::Action>) -> (bool, String, String) {
    let environment = crate::config::Environment { node_name: Some("node-1".to_owned()), host_name: None };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let arguments = config::ConfigArgs { example: action.is_none(), action };
    let code = arguments.execute_to(&environment, &mut output, &mut errors, false).expect("written");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (code == ExitCode::SUCCESS, text(output), text(errors))
}

#[test]
fn config_checks_and_shows_files() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("sidestep.yaml");
    let file = || config::FileArgs { file: Some(path.clone()) };
    let (is_right, example, errors) = run_config(None);
    assert_eq!((is_right, errors.as_str()), (true, ""));
    assert_eq!(run_config(Some(config::Action::Example)), (true, example.clone(), String::new()));
    std::fs::write(&path, &example).expect("written");
    let (is_right, output, errors) = run_config(Some(config::Action::Check(file())));
    assert_eq!((is_right, errors.as_str()), (true, ""));
    assert_eq!(output, format!("{}: no problems\n", path.display()));
    let (is_right, shown, errors) = run_config(Some(config::Action::Show(file())));
    assert_eq!((is_right, errors.as_str()), (true, ""));
    assert!(shown.starts_with("node_name: node-1\nstate_dir: /var/lib/sidestep\n"), "{shown}");
    std::fs::write(&path, "log:\n  level: loud\n").expect("written");
    for action in [config::Action::Check(file()), config::Action::Show(file())] {
        let (is_right, output, errors) = run_config(Some(action));
        assert_eq!((is_right, output.as_str()), (false, ""));
        assert!(errors.contains(&format!("--> {}:2:10", path.display())), "{errors}");
    }
    std::fs::remove_file(&path).expect("removed");
    let (is_right, _, errors) = run_config(Some(config::Action::Check(file())));
    assert!(!is_right && errors.contains("No such file or directory"), "{errors}");
}

#[test]
fn check_warns_of_files_that_this_machine_has_not() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("sidestep.yaml");
    let there = directory.path().join("token");
    std::fs::write(&there, "x").expect("written");
    let text = format!(
        "sinks:\n  - {{type: console}}\n  - {{type: http, name: far, url: 'https://a/logs', tls: {{ca_file: /no/ca}}, \
         auth: {{bearer: {{token_file: {}}}}}, headers: {{X-A: {{file: /no/header}}}}}}\n",
        there.display()
    );
    std::fs::write(&path, text).expect("written");
    let check = config::Action::Check(config::FileArgs { file: Some(path.clone()) });
    let (is_right, output, errors) = run_config(Some(check));
    assert_eq!((is_right, output), (true, format!("{}: no problems, 2 warnings\n", path.display())));
    for part in ["sinks[1], `far`: tls.ca_file /no/ca: No such file", "headers.X-A.file /no/header: No such file"] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }
    assert_eq!(errors.lines().filter(|line| line.starts_with("warning: ")).count(), 2, "{errors}");
}
