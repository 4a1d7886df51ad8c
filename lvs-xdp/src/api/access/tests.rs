use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

const FIRST: &str = "0123456789abcdef0123456789abcdef";
const SECOND: &str = "fedcba9876543210fedcba9876543210";

fn file(contents: &str, mode: u32) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), contents).unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
    file
}

#[test]
fn tokens_are_found_by_all_of_their_characters() {
    let file = file(&format!("# of the monitoring\nro:{FIRST}\n\n  {SECOND}\n"), 0o600);
    let tokens = Tokens::read(file.path()).unwrap();
    let token = |line, is_read_only| Some(Token { line, is_read_only });
    assert_eq!(tokens.find(FIRST.as_bytes()), token(2, true));
    assert_eq!(tokens.find(SECOND.as_bytes()), token(4, false));
    for wrong in [
        "",
        &FIRST[1..],
        &format!("{FIRST}0"),
        &format!("ro:{FIRST}"),
        "# of the monitoring",
    ] {
        assert_eq!(tokens.find(wrong.as_bytes()), None, "{wrong}");
    }
    assert_eq!(read_token(file.path()).unwrap(), FIRST);
}

#[test]
fn files_of_tokens_are_refused_without_a_word_of_them() {
    for (contents, mode, part) in [
        (
            format!("{FIRST}\n"),
            0o644,
            "is open to others than its owner (mode 0644)",
        ),
        (format!("{FIRST}\n"), 0o640, "`chmod go= "),
        (
            "short-secret\n".to_owned(),
            0o600,
            ":1: a token has 16 characters at least",
        ),
        (format!("\n{FIRST} {SECOND}\n"), 0o600, ":2: a token is one word"),
        (
            format!("{FIRST}\nro:{FIRST}\n"),
            0o600,
            ":2: the token of line 1 again",
        ),
        ("# nothing\n".to_owned(), 0o600, "has no token"),
    ] {
        let file = file(&contents, mode);
        let error = format!("{:#}", Tokens::read(file.path()).err().unwrap());
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
        for secret in [FIRST, SECOND, "short-secret"] {
            assert!(!error.contains(secret), "{error}");
        }
    }
}

#[test]
fn nobody_is_let_in_by_accident() {
    let path = || Some(PathBuf::from("/file"));
    let listen = |address: &str| Remote {
        listen: vec![address.parse().unwrap()],
        ..Remote::default()
    };
    let with_token = |address| Remote {
        token_file: path(),
        ..listen(address)
    };
    for (remote, part) in [
        (listen("127.0.0.1:1"), "would let everybody in"),
        (
            Remote {
                token_file: path(),
                ..Remote::default()
            },
            "say with --listen",
        ),
        (with_token("10.0.0.1:1"), "over TLS only"),
        (with_token("[::]:1"), "over TLS only"),
        (with_token("[::1]:0"), "names no port"),
        (
            Remote {
                tls_cert: path(),
                ..with_token("127.0.0.1:1")
            },
            "belong together",
        ),
        (
            Remote {
                tls_client_ca: path(),
                ..with_token("127.0.0.1:1")
            },
            "is for TLS",
        ),
        (
            Remote {
                tls_cert: path(),
                tls_key: path(),
                ..listen("10.0.0.1:1")
            },
            "would let everybody in",
        ),
    ] {
        let error = remote.check().unwrap_err();
        assert!(error.contains(part), "{remote:?}: {error}");
    }
    for remote in [
        Remote::default(),
        with_token("127.0.0.1:1"),
        with_token("[::1]:1"),
        Remote {
            tls_cert: path(),
            tls_key: path(),
            ..with_token("10.0.0.1:1")
        },
        Remote {
            tls_cert: path(),
            tls_key: path(),
            tls_client_ca: path(),
            ..listen("10.0.0.1:1")
        },
    ] {
        assert_eq!(remote.check(), Ok(()), "{remote:?}");
    }
}
