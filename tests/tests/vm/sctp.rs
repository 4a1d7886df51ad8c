//! SCTP with the kernel's own sockets at both ends.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::XdpMode,
    lab::{CLIENT, Lab, VIP, real_server_address},
    netns::Netns,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{config, in_the_guest};

in_the_guest!(associations_take_turns_and_carry_data);

const PORT: u16 = 5000;
/// So many bytes go up an association: more than one packet, and more than the first window.
const UPLOAD: usize = 100_000;

fn associations_take_turns_and_carry_data() -> Result<()> {
    let lab = Lab::start(config(XdpMode::Native))?;
    lab.ipvsadm(["-A", "--sctp-service", &format!("{VIP}:{PORT}"), "-s", "rr"])?;
    let mut servers = Vec::new();
    for (number, web) in (1..).zip(lab.real_servers()) {
        let server = format!("{}:{PORT}", real_server_address(number));
        lab.ipvsadm([
            "-a",
            "--sctp-service",
            &format!("{VIP}:{PORT}"),
            "-r",
            &server,
            "-g",
        ])?;
        servers.push(serve(web.netns(), web.name(), 2)?);
    }

    let first = Association::open(lab.client())?;
    assert_eq!(first.server, "rs2");
    let listed = lab.ipvsadm(["-L", "-n", "-c"])?;
    let entry = listed
        .lines()
        .find(|line| line.starts_with("SCTP"))
        .context("the association is no connection")?;
    assert!(entry.contains("ESTABLISHED"), "{entry}");
    assert!(entry.contains(&format!("{CLIENT}:")), "{entry}");
    first.upload()?;
    for name in ["rs1", "rs2", "rs1"] {
        let association = Association::open(lab.client())?;
        assert_eq!(association.server, name);
        association.upload()?;
    }
    for server in servers {
        server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    }
    Ok(())
}

/// A one-to-one socket, on or to the VIP alone: SCTP would tell the other side of every address that the
/// socket has, and Direct Routing works with none but the VIP.
fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP))?;
    let limit = Some(Duration::from_secs(20));
    socket.set_read_timeout(limit)?;
    socket.set_write_timeout(limit)?;
    Ok(socket)
}

/// Takes so many associations on a real server, one after the other: says the host's name, reads
/// [`UPLOAD`] bytes, and says how many came.
fn serve(netns: &Netns, name: &str, associations: usize) -> Result<JoinHandle<Result<()>>> {
    let listener = netns.enter(|| {
        let listener = socket()?;
        listener.bind(&SocketAddrV4::new(VIP, PORT).into())?;
        listener.listen(8)?;
        io::Result::Ok(listener)
    })??;
    let greeting = format!("{name}\n");
    Ok(std::thread::spawn(move || {
        for _ in 0..associations {
            let (accepted, _client) = listener.accept().context("waiting for an association")?;
            accepted.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut stream = TcpStream::from(accepted);
            stream.write_all(greeting.as_bytes())?;
            stream.read_exact(&mut vec![0; UPLOAD])?;
            stream.write_all(format!("{UPLOAD}\n").as_bytes())?;
            // The client ends the association: the end of the stream is its SHUTDOWN.
            ensure!(stream.read(&mut [0])? == 0, "there is more than was sent");
        }
        Ok(())
    }))
}

/// An association of the client's with whichever real server it came to.
struct Association {
    stream: TcpStream,
    server: String,
}

impl Association {
    fn open(client: &Netns) -> Result<Self> {
        let stream = client.enter(|| {
            let socket = socket()?;
            socket.bind(&SocketAddrV4::new(CLIENT, 0).into())?;
            socket.connect(&SocketAddrV4::new(VIP, PORT).into())?;
            io::Result::Ok(TcpStream::from(socket))
        })??;
        let mut association = Self {
            stream,
            server: String::new(),
        };
        association.server = association.line()?;
        Ok(association)
    }

    fn upload(mut self) -> Result<()> {
        // In messages: SCTP keeps their bounds, and one must fit into the socket's buffer.
        for _ in 0..UPLOAD / 1000 {
            self.stream.write_all(&[0x5a; 1000])?;
        }
        assert_eq!(self.line()?, UPLOAD.to_string());
        Ok(())
    }

    /// One message of the server's, without its newline.
    fn line(&mut self) -> Result<String> {
        let mut message = [0; 64];
        let length = self.stream.read(&mut message).context("waiting for an answer")?;
        Ok(String::from_utf8_lossy(&message[..length]).trim_end().to_owned())
    }
}
