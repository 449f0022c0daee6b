//! Java programs and libraries from Maven Central, fetched once into the target directory.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Group, artifact and version.
type Artifact = (&'static str, &'static str, &'static str);

/// The directory with log4j2's jars.
///
/// # Errors
/// Maven isn't installed, or Maven Central can't be reached.
pub fn log4j() -> Result<PathBuf> {
    jars("log4j", &[("org.apache.logging.log4j", "log4j-core", "2.24.3")])
}

/// The directory with the jars of a Kafka broker.
///
/// # Errors
/// As [`log4j`].
pub fn kafka() -> Result<PathBuf> {
    jars(
        "kafka",
        &[("org.apache.kafka", "kafka_2.13", "4.1.0"), ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3")],
    )
}

/// The directory with the jars of an OpenSearch node that talks HTTP.
///
/// # Errors
/// As [`log4j`].
pub fn opensearch() -> Result<PathBuf> {
    jars(
        "opensearch",
        &[
            ("org.opensearch", "opensearch", "2.19.0"),
            ("org.opensearch.plugin", "transport-netty4-client", "2.19.0"),
            ("org.apache.logging.log4j", "log4j-core", "2.21.0"),
        ],
    )
}

/// The directory with the jars of `artifacts` and of all that they need.
fn jars(name: &str, artifacts: &[Artifact]) -> Result<PathBuf> {
    let own = env::current_exe().context("finding the test binary")?;
    let target = own.ancestors().find(|directory| directory.join(".rustc_info.json").exists());
    let cache = target.map_or_else(env::temp_dir, Path::to_owned).join("sidestep-tests");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let versions: Vec<_> = artifacts.iter().map(|(_, _, version)| *version).collect();
    let jars = cache.join(format!("{name}-{}", versions.join("-")));
    // Tests run at once; one of them fetches.
    let lock = fs::File::create(cache.join(format!("{name}.lock")))?;
    lock.lock().context("locking the cache of jars")?;
    if jars.exists() {
        return Ok(jars);
    }
    let project = cache.join(format!("{name}-project"));
    fs::create_dir_all(&project)?;
    fs::write(project.join("pom.xml"), pom(artifacts))?;
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "dependency:copy-dependencies", "-DoutputDirectory=lib"]);
    let output = maven.current_dir(&project).output().context("running mvn: apt-get install maven")?;
    ensure!(output.status.success(), "mvn: {}", String::from_utf8_lossy(&output.stdout));
    fs::rename(project.join("lib"), &jars).context("keeping the jars")?;
    Ok(jars)
}

fn pom(artifacts: &[Artifact]) -> String {
    let dependencies: String = artifacts
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>\n"
            )
        })
        .collect();
    format!(
        "<project>\n<modelVersion>4.0.0</modelVersion>\n<groupId>dev.sidestep</groupId>\n\
         <artifactId>tests</artifactId>\n<version>1</version>\n<dependencies>\n{dependencies}</dependencies>\n\
         </project>\n"
    )
}
