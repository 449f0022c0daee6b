//! Real writers: logging libraries and servers as they are used.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidestep_tests::{Agent, Container, DEADLINE, Expected, Testbed, end_to_end, maven, wait_until};

fn file_of(container: &Container, path: &str) -> Result<Vec<u8>> {
    fs::read(container.rootfs().join(path.trim_start_matches('/'))).with_context(|| format!("reading {path}"))
}

/// Writes `text` into a file of the test bed and returns its path.
fn source(bed: &Testbed, name: &str, text: &str) -> Result<PathBuf> {
    let path = bed.path(format!("source/{name}"))?;
    fs::write(&path, text)?;
    Ok(path)
}

const JAVA: &str = r#"
import org.apache.logging.log4j.*;
public class Writer {
    public static void main(String[] args) throws Exception {
        Logger log = LogManager.getLogger("shop");
        for (int n = 0; n < 2000; n++) log.info("order {} of {}", n, 2000);
        log.error("it failed", new IllegalStateException("no stock", new RuntimeException("cause")));
        if (args.length > 0) LogManager.shutdown();
        System.err.println("done");
        System.in.read();
    }
}
"#;

/// Runs the Java program with one appender for `/var/log/app.log`, and one on stdout.
fn java_writer(bed: &Testbed, appender: &str, arguments: &[&str]) -> Result<Container> {
    let config = format!(
        "<Configuration status=\"error\"><Appenders>{appender}\n\
         <Console name=\"console\"><PatternLayout pattern=\"%p %m%n\"/></Console>\n\
         </Appenders><Loggers><Root level=\"info\"><AppenderRef ref=\"file\"/><AppenderRef ref=\"console\"/></Root>\n\
         </Loggers></Configuration>"
    );
    source(bed, "log4j2.xml", &config)?;
    source(bed, "Writer.java", JAVA)?;
    let mut args = vec![
        "java",
        "-Xmx128m",
        "-XX:-UsePerfData",
        "-Dlog4j2.configurationFile=/source/log4j2.xml",
        "-cp",
        "/jars/*",
        "/source/Writer.java",
    ];
    args.extend(arguments);
    let builder =
        bed.container("app").host_programs().bind(maven::log4j()?, "/jars").bind(bed.path("source")?, "/source");
    let container = builder.args(&args).start()?;
    wait_until("the Java program", 3 * DEADLINE, || {
        let stderr = container.stderr();
        ensure!(stderr.is_empty() || b"done\n".starts_with(&stderr), "{}", String::from_utf8_lossy(&stderr));
        Ok((stderr == b"done\n").then_some(()))
    })?;
    Ok(container)
}

/// What both appenders write, up to the stack traces, which the writer's own file tells.
fn is_java_output(text: &[u8]) -> bool {
    let orders: String = (0..2000).map(|n| format!("INFO order {n} of 2000\n")).collect();
    let trace = String::from_utf8_lossy(text.get(orders.len()..).unwrap_or_default()).into_owned();
    text.starts_with(orders.as_bytes())
        && trace.starts_with("ERROR it failed\njava.lang.IllegalStateException: no stock\n\tat ")
        && trace.contains("\nCaused by: java.lang.RuntimeException: cause\n")
}

#[test]
fn java_log4j2_random_access_file() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let appender = "<RandomAccessFile name=\"file\" fileName=\"/var/log/app.log\" immediateFlush=\"true\">\
                        <PatternLayout pattern=\"%p %m%n\"/></RandomAccessFile>";
        let container = java_writer(bed, appender, &[])?;
        let text = file_of(&container, "/var/log/app.log")?;
        ensure!(is_java_output(&text), "{}", String::from_utf8_lossy(&text));
        wait_until("the same on stdout", DEADLINE, || Ok((container.stdout() == text).then_some(())))?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).stderr(&container, "done\n").file(&container, "/var/log/app.log", &text);
        expected.verify(agent, &[&container])
    });
}

#[test]
fn java_log4j2_memory_mapped_file() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let appender = "<MemoryMappedFile name=\"file\" fileName=\"/var/log/app.log\" regionLength=\"65536\">\
                        <PatternLayout pattern=\"%p %m%n\"/></MemoryMappedFile>";
        // The appender cuts the unused rest of the last region off when it is shut down.
        let container = java_writer(bed, appender, &["shutdown"])?;
        let text = file_of(&container, "/var/log/app.log")?;
        ensure!(is_java_output(&text), "{}", String::from_utf8_lossy(&text));
        wait_until("the same on stdout", DEADLINE, || Ok((container.stdout() == text).then_some(())))?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).stderr(&container, "done\n").file(&container, "/var/log/app.log", &text);
        expected.verify(agent, &[&container])
    });
}

#[test]
fn java_traces_are_one_record_by_the_built_in_rule() {
    end_to_end(|bed| {
        let config = bed.config().with("/lines/multiline/rules", json!(["java"]));
        let agent = Agent::start(bed, &config)?;
        let appender = "<Null name=\"file\"/>";
        let container = java_writer(bed, appender, &[])?;
        let text = wait_until("all of stdout", DEADLINE, || {
            let text = container.stdout();
            Ok(is_java_output(&text).then_some(text))
        })
        .with_context(|| String::from_utf8_lossy(&container.stdout()).into_owned())?;
        let mut expected = Expected::new();
        expected.stdout(&container, &text).stderr(&container, "done\n");
        expected.wait_delivered(&agent)?;
        let traces: Vec<_> = agent.records()?.into_iter().filter(|record| record.has_flag("multiline")).collect();
        ensure!(traces.len() == 1, "{} records are joined", traces.len());
        let body = traces[0].text("/body");
        ensure!(body.starts_with("java.lang.IllegalStateException: ") && body.contains("\nCaused by: "), "{body}");
        expected.verify(agent, &[&container])
    });
}

const GO: &str = r#"package main

import ("encoding/json"; "fmt"; "log"; "os"; "sync")

func main() {
	file, err := os.OpenFile("/var/log/go.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil { panic(err) }
	text := log.New(file, "", log.Lmsgprefix)
	structured := json.NewEncoder(os.Stdout)
	var group sync.WaitGroup
	for worker := 0; worker < 8; worker++ {
		group.Add(1)
		go func(worker int) {
			defer group.Done()
			for n := 0; n < 250; n++ { text.Printf("worker %d line %d", worker, n) }
		}(worker)
	}
	group.Wait()
	for n := 0; n < 500; n++ { structured.Encode(map[string]any{"msg": "order <&>", "n": n}) }
	fmt.Fprintln(os.Stderr, "done")
	os.Stdin.Read(make([]byte, 1))
}
"#;

#[test]
fn go_log_and_json() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        let program = source(bed, "writer.go", GO)?;
        let binary = bed.path("source/writer")?;
        let mut build = Command::new(go());
        build.args(["build", "-o"]).arg(&binary).arg(&program).env("CGO_ENABLED", "0").env("GO111MODULE", "off");
        let output = build.output().context("running go: apt-get install golang-go")?;
        ensure!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr));
        let container = bed.container("app").bind(&binary, "/data/writer").args(&["/data/writer"]).start()?;
        container.wait_stderr("done\n")?;
        let text = file_of(&container, "/var/log/go.log")?;
        ensure!(text.iter().filter(|byte| **byte == b'\n').count() == 2000);
        ensure!(container.stdout().iter().filter(|byte| **byte == b'\n').count() == 500);
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout()).stderr(&container, "done\n");
        expected.file(&container, "/var/log/go.log", text);
        expected.verify(agent, &[&container])
    });
}

/// Go's own installer puts it where `PATH` may not look.
fn go() -> PathBuf {
    let own = PathBuf::from("/usr/local/go/bin/go");
    if own.exists() { own } else { PathBuf::from("go") }
}

const NODE: &str = r#"
const fs = require('fs');
const stream = fs.createWriteStream('/var/log/node.log', { flags: 'a' });
for (let n = 0; n < 1000; n++) {
  console.log('order', n);
  if (n % 10 == 0) console.error('failure', n);
  stream.write(`streamed ${n}\n`);
  fs.appendFileSync('/var/log/sync.log', `synchronous ${n}\n`);
}
stream.end(() => fs.writeFileSync('/data/done', ''));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
"#;

#[test]
fn node_console_and_streams() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        source(bed, "writer.js", NODE)?;
        let builder = bed.container("app").host_programs().bind(bed.path("source")?, "/source");
        let container = builder.args(&["node", "/source/writer.js"]).start()?;
        let mark = container.rootfs().join("data/done");
        let numbered = |word: &str, step| (0..1000).step_by(step).map(|n| format!("{word} {n}\n")).collect::<String>();
        wait_until("the Node program", DEADLINE, || {
            let outputs = container.stdout().len() == numbered("order", 1).len()
                && container.stderr().len() == numbered("failure", 10).len();
            Ok((mark.exists() && outputs).then_some(()))
        })
        .with_context(|| String::from_utf8_lossy(&container.stderr()).into_owned())?;
        let mut expected = Expected::new();
        expected.stdout(&container, numbered("order", 1)).stderr(&container, numbered("failure", 10));
        expected.file(&container, "/var/log/node.log", numbered("streamed", 1));
        expected.file(&container, "/var/log/sync.log", numbered("synchronous", 1));
        expected.verify(agent, &[&container])
    });
}

const NGINX: &str = "
worker_processes 2; daemon off; user root; pid /run/nginx.pid; error_log /var/log/nginx/error.log info;
events { }
http {
    log_format plain '$request $status';
    access_log /dev/stdout plain;
    access_log /var/log/nginx/access.log plain;
    client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
    server { listen 127.0.0.1:8080; location / { return 200 ok; } }
}
";

#[test]
fn nginx_to_stdout_and_to_files() {
    end_to_end(|bed| {
        let agent = bed.agent()?;
        source(bed, "nginx.conf", NGINX)?;
        let script = "mkdir /var/log/nginx; exec nginx -c /source/nginx.conf";
        let builder = bed.container("web").host_programs().bind(bed.path("source")?, "/source");
        let container = builder.shell(script).start()?;
        let client =
            "for i in $(seq 100); do until wget -q -O /dev/null http://127.0.0.1:8080/$i; do usleep 10000; done; done";
        // Asked from a session, whose own output is no log.
        container
            .exec(&["sh", "-c", client])
            .with_context(|| String::from_utf8_lossy(&container.stderr()).into_owned())?;
        // A client has its answer before the line is written, so two workers may write theirs in the other order.
        let sorted = |log: &[u8]| {
            let mut lines: Vec<_> = log.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            lines.sort_unstable();
            lines
        };
        let requests: String = (1..=100).map(|number| format!("GET /{number} HTTP/1.1 200\n")).collect();
        let requests = sorted(requests.as_bytes());
        for stream in ["stdout", "file"] {
            wait_until(&format!("nginx' log, {stream}"), DEADLINE, || {
                let log = match stream {
                    "stdout" => container.stdout(),
                    _ => file_of(&container, "/var/log/nginx/access.log")?,
                };
                Ok((sorted(&log) == requests).then_some(()))
            })?;
        }
        let access = file_of(&container, "/var/log/nginx/access.log")?;
        let errors = file_of(&container, "/var/log/nginx/error.log")?;
        let mut expected = Expected::new();
        expected.stdout(&container, container.stdout()).stderr(&container, container.stderr());
        expected.file(&container, "/var/log/nginx/access.log", access);
        expected.file(&container, "/var/log/nginx/error.log", errors);
        expected.verify(agent, &[&container])
    });
}
