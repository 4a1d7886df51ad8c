//! How scripts call it: by Debian's own wrappers, many at once, without an agent, without rights.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result};

use super::{Director, fed, stdout};

/// Rules of so many services with two real servers each, of all kinds, in the order in which they are saved.
fn rules(services: usize) -> String {
    let mut rules = String::new();
    for number in 0..services {
        let (high, low) = (number / 250, number % 250 + 1);
        let name = format!("-t 10.1.{high}.{low}:80");
        let options = match number % 4 {
            0 => "-s rr",
            1 => "-s sh -b sh-fallback,sh-port",
            2 => "-s wlc -p 360 -M 255.255.255.0",
            _ => "-s mh -p 60 -b mh-port",
        };
        let methods = ["-g -w 1", "-i -w 300 --tun-type gue --tun-port 6080 --tun-nocsum"];
        writeln!(rules, "-A {name} {options}").expect("memory takes all");
        for (host, method) in (1..).zip(methods) {
            writeln!(rules, "-a {name} -r 10.2.{host}.{low}:80 {method}").expect("memory takes all");
        }
    }
    rules
}

impl Director {
    /// One of Debian's scripts, with the drop-in in the place of Debian's ipvsadm.
    fn debians(&self, script: &str) -> Command {
        let mut command = self.command("unshare");
        let binary = self.agent.binary().display().to_string();
        command.args(["--mount", "sh", "-ec"]);
        command.arg("mount --bind \"$1\" \"$(readlink -f /sbin/ipvsadm)\"; exec \"$2\" -n");
        command.args(["sh", &binary, script]);
        command
    }
}

#[test]
fn debians_scripts_bring_a_thousand_services_round() -> Result<()> {
    let director = Director::start(&[])?;
    let rules = rules(1_000);
    director.fed("-R", &rules)?;
    let is = |seen: &str, expected: &str| {
        let differing = seen
            .lines()
            .zip(expected.lines())
            .find(|(one, other)| one != other);
        assert!(seen == expected, "{} lines, {differing:?}", seen.lines().count());
    };
    is(&director.ipvsadm("-S -n")?, &rules);
    let saved = stdout(fed(director.debians("/sbin/ipvsadm-save"), "")?)?;
    is(&saved, &rules);
    director.ipvsadm("-C")?;
    assert_eq!(director.ipvsadm("-S -n")?, "");
    let commented = format!("# saved\n{saved}");
    stdout(fed(director.debians("/sbin/ipvsadm-restore"), &commented)?)?;
    is(&director.ipvsadm("-S -n")?, &rules);

    // Those that come with the drop-in.
    let mut save = director.command("ipvsadm-save");
    save.arg("-n");
    is(&stdout(fed(save, "")?)?, &rules);
    let half = rules
        .lines()
        .take(1_500)
        .fold(String::new(), |text, line| text + line + "\n");
    stdout(fed(director.command("ipvsadm-restore"), &half)?)?;
    is(&director.ipvsadm("-S -n")?, &half);
    Ok(())
}

#[test]
fn restoring_has_no_moment_without_services() -> Result<()> {
    let director = Director::start(&[])?;
    let [one, other] = ["rr", "wlc"].map(|scheduler| {
        let rules = (1..=100).map(|port| format!("-A -t 10.1.0.1:{port} -s {scheduler}\n"));
        rules.collect::<String>()
    });
    stdout(fed(director.command("ipvsadm-restore"), &one)?)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let watching = scope.spawn(|| -> Result<BTreeSet<String>> {
            let mut seen = BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) {
                seen.insert(director.ipvsadm("-S -n")?);
            }
            Ok(seen)
        });
        for rules in [&other, &one, &other, &one, &other] {
            stdout(fed(director.command("ipvsadm-restore"), rules)?)?;
        }
        // A bad line in it, and nothing happens.
        let ended = fed(
            director.command("ipvsadm-restore"),
            &format!("{one}-A -t 10.1.0.1:1\nnonsense\n"),
        )?;
        is_over.store(true, Ordering::Relaxed);
        let said = String::from_utf8(ended.stderr)?;
        assert_eq!(ended.status.code(), Some(255), "{said}");
        assert!(
            said.starts_with("line 101: Service already exists\nline 102: Try `"),
            "{said}"
        );
        let seen = watching.join().expect("the watch does not panic")?;
        assert!(
            seen.iter().all(|rules| [&one, &other].contains(&rules)),
            "{seen:?}"
        );
        assert!(seen.contains(&other));
        Ok(())
    })?;
    assert_eq!(director.ipvsadm("-S -n")?, other);
    Ok(())
}

#[test]
fn ten_scripts_at_once_lose_nothing() -> Result<()> {
    let director = Director::start(&[])?;
    director.ipvsadm("-A -t 10.1.0.100:80 -s rr")?;
    let script = |script: usize| -> Result<()> {
        for port in 1..=4 {
            let service = format!("-t 10.1.0.{script}:{port}");
            director.ipvsadm(&format!("-A {service} -s rr"))?;
            director.ipvsadm(&format!("-a {service} -r 10.2.0.{port} -w {script}"))?;
            director.ipvsadm(&format!("-E {service} -s wrr"))?;
            if port % 2 == 0 {
                director.ipvsadm(&format!("-D {service}"))?;
            }
            // A service that all of them have.
            director.ipvsadm(&format!("-a -t 10.1.0.100:80 -r 10.2.{script}.{port}"))?;
            director.ipvsadm("-L -n")?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let scripts: Vec<_> = (1..=10)
            .map(|number| scope.spawn(move || script(number)))
            .collect();
        scripts
            .into_iter()
            .try_for_each(|script| script.join().expect("a script does not panic"))
    })?;
    let mut expected = String::new();
    for script in 1..=10 {
        for port in [1, 3] {
            write!(
                expected,
                "-A -t 10.1.0.{script}:{port} -s wrr\n-a -t 10.1.0.{script}:{port} -r 10.2.0.{port}:{port} -g -w {script}\n"
            )?;
        }
    }
    expected += "-A -t 10.1.0.100:80 -s rr\n";
    for script in 1..=10 {
        for port in 1..=4 {
            writeln!(expected, "-a -t 10.1.0.100:80 -r 10.2.{script}.{port}:80 -g -w 1")?;
        }
    }
    assert_eq!(director.ipvsadm("-S -n")?, expected);
    Ok(())
}

#[test]
fn without_an_agent_one_line_names_the_socket() -> Result<()> {
    let mut director = Director::start(&[])?;
    director.agent.terminate()?;
    let socket = director.agent.socket().display().to_string();
    for line in [
        "",
        "-L -n",
        "-L --daemon",
        "-L -c",
        "-L --timeout",
        "-S",
        "-Z",
        "-C",
        "-A -t 10.0.0.1:80",
        "-E -t 10.0.0.1:80",
        "-a -t 10.0.0.1:80 -r 10.0.0.2",
        "--set 1 2 3",
        "-R",
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let ended = director.call(&words, "-A -t 10.0.0.1:80\n")?;
        let said = String::from_utf8(ended.stderr)?;
        assert_eq!(
            (ended.status.code(), ended.stdout.len()),
            (Some(2), 0),
            "{line}: {said}"
        );
        assert!(
            said.lines().count() == 1 && said.contains(&socket),
            "{line}: {said}"
        );
    }
    for line in ["-h", "--help", "-v", "--version"] {
        assert!(!director.ipvsadm(line)?.is_empty());
    }
    // What is wrong with the line itself is said first.
    let ended = director.call(&["-A"], "")?;
    assert!(String::from_utf8(ended.stderr)?.starts_with("You need to supply"));
    Ok(())
}

#[test]
fn without_rights_it_says_so() -> Result<()> {
    let director = Director::start(&[])?;
    let rules = "-A -t 10.0.0.1:80 -s rr\n";
    director.fed("-R", rules)?;
    // A copy that everybody can reach.
    let shared = tempfile::tempdir()?;
    fs::set_permissions(shared.path(), Permissions::from_mode(0o755))?;
    let program = shared.path().join("ipvsadm");
    fs::copy(director.agent.binary(), &program)?;
    let program = program.to_str().context("a path that is text")?;
    for line in ["-L -n", "-C", "-A -t 10.0.0.2:80", "-S", "-R", "-Z", "-L -c"] {
        let mut command = director.command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", program]);
        command.args(line.split_whitespace());
        let ended = fed(command, "-C\n")?;
        let said = String::from_utf8(ended.stderr)?;
        assert_eq!(
            (ended.status.code(), said.as_str(), ended.stdout.len()),
            (Some(255), "Permission denied (you must be root)\n", 0),
            "{line}"
        );
    }
    assert_eq!(director.ipvsadm("-S -n")?, rules);
    Ok(())
}
