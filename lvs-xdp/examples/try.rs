//! Try.
fn main() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .init();
    let d = lvs_xdp::dataplane::Dataplane::open(&lvs_xdp::dataplane::Options {
        pin_directory: "/sys/fs/bpf/lvstry".into(),
        capacity: lvs_xdp::dataplane::Capacity {
            connections: 1024,
            services: 16,
            destinations: 64,
        },
        log_packets: false,
    });
    match d {
        Ok(mut d) => {
            println!("{d:?} {:?}", d.tick());
            println!("{}", d.program_id().unwrap());
            std::thread::sleep(std::time::Duration::from_millis(2000));
            println!("{:?}", d.tick());
            d.unload().unwrap();
        }
        Err(e) => println!("{e:#}"),
    }
}
