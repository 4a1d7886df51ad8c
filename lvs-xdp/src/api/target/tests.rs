use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn error(connection: &ClientOptions) -> String {
    let error = connection.clone().open().unwrap_err();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn what_does_not_go_together_is_refused() {
    let to = |url: &str| ClientOptions {
        connect: Some(url.to_owned()),
        ..ClientOptions::default()
    };
    let path = || Some(PathBuf::from("/none"));
    for (connection, part) in [
        (
            ClientOptions {
                token_file: path(),
                ..ClientOptions::default()
            },
            "--token-file is for an agent over",
        ),
        (
            ClientOptions {
                tls_key: path(),
                ..ClientOptions::default()
            },
            "--tls-key is for an agent over",
        ),
        (
            ClientOptions {
                socket: path(),
                ..to("https://h:1")
            },
            "name one",
        ),
        (to("h:1"), "is no address of an agent"),
        (to("https://h"), "is no address of an agent"),
        (to("https://h:0"), "is no address of an agent"),
        (to("https://user@h:1"), "is no address of an agent"),
        (to("https://h:1/v1"), "is no address of an agent"),
        (to("ftp://h:1"), "is no address of an agent"),
        (to("http://192.0.2.1:1"), "for all to read"),
        (to("https://h:1"), "lets nobody in"),
        (
            ClientOptions {
                tls_cert: path(),
                ..to("https://h:1")
            },
            "belong together",
        ),
        (
            ClientOptions {
                tls_ca: path(),
                ..to("http://127.0.0.1:1")
            },
            "without TLS",
        ),
        (
            ClientOptions {
                token_file: path(),
                ..to("http://[::1]:1")
            },
            "/none cannot be read",
        ),
    ] {
        let error = error(&connection);
        assert!(error.contains(part), "{connection:?}: {error}");
    }
}

#[test]
fn the_environment_stands_in_for_what_is_not_said() {
    let all = |name: &str| Some(std::ffi::OsString::from(format!("/of/{name}")));
    let of = |name: &str| Some(PathBuf::from(format!("/of/{name}")));
    let socket = ClientOptions {
        socket: of("option"),
        ..ClientOptions::default()
    };
    assert_eq!(socket.clone().with(all), socket);

    let url = ClientOptions {
        connect: Some("url".to_owned()),
        tls_ca: of("option"),
        ..ClientOptions::default()
    };
    let expected = ClientOptions {
        socket: None,
        token_file: of("LVS_XDP_TOKEN_FILE"),
        tls_cert: of("LVS_XDP_TLS_CERT"),
        tls_key: of("LVS_XDP_TLS_KEY"),
        ..url.clone()
    };
    assert_eq!(url.with(all), expected);

    let connect = ClientOptions::default().with(all).connect;
    assert_eq!(connect.as_deref(), Some("/of/LVS_XDP_CONNECT"));
    let files = |name: &str| (name != CONNECT_VARIABLE).then(|| all(name)).flatten();
    assert_eq!(ClientOptions::default().with(files), ClientOptions::default());
}

#[test]
fn a_token_is_shown_to_the_agent_only() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("ro:{TOKEN}\n")).unwrap();
    let connection = ClientOptions {
        connect: Some("http://localhost:7143".to_owned()),
        token_file: Some(file.path().to_owned()),
        ..ClientOptions::default()
    };
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(error(&connection).contains("mode 0644"));
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let target = connection.open().unwrap();
    assert_eq!(
        target.authorization().unwrap().as_bytes(),
        format!("Bearer {TOKEN}").as_bytes()
    );
    assert!(!format!("{target:?} {target} {:?}", target.authorization()).contains(TOKEN));
    assert!(target.is_remote());
}
