//! The help text. The real one's is no contract; this one names what is there.

use crate::api::types::Scheduler;

/// The text of `-h`.
pub(super) fn text() -> String {
    let schedulers = Scheduler::ALL.map(Scheduler::name).join(" ");
    let default = Scheduler::default();
    format!(
        "\
ipvsadm of lvs-xdp: the virtual services of the director, as ipvsadm 1.31 has them

Usage:
  ipvsadm -A|E -t|u VIP:PORT [-s SCHEDULER] [-b FLAG,...]
  ipvsadm -D -t|u VIP:PORT
  ipvsadm -C
  ipvsadm -a|e -t|u VIP:PORT -r RIP [-g] [-w WEIGHT]
  ipvsadm -d -t|u VIP:PORT -r RIP
  ipvsadm -L|l [-n] [-t|u VIP:PORT] [--stats [-X]] [--nosort]
  ipvsadm -L|l --timeout
  ipvsadm --set TCP TCPFIN UDP
  ipvsadm -h | -v

Commands:
  -A, --add-service      add a virtual service
  -E, --edit-service     replace a virtual service's settings
  -D, --delete-service   remove a virtual service and its real servers
  -C, --clear            remove every virtual service
  -a, --add-server       add a real server to a virtual service
  -e, --edit-server      replace a real server's settings
  -d, --delete-server    remove a real server from a virtual service
  -L, -l, --list         show the virtual services (also without any command)
      --set                  set the time-outs in seconds, 0 for one that stays
  -h, --help             show this text
  -v, --version          show the version of ipvsadm that is spoken

Options:
  -t, --tcp-service VIP:PORT    a TCP service; [VIP]:PORT where the VIP is IPv6
  -u, --udp-service VIP:PORT    a UDP service
  -s, --scheduler SCHEDULER     {schedulers};
                                {default} where none is given
  -b, --sched-flags FLAG,...    sh-fallback sh-port (sh), mh-fallback mh-port (mh)
  -r, --real-server RIP         a real server; its port is the service's
  -g, --gatewaying              direct routing, which is the default
  -w, --weight WEIGHT           0 to 2147483647, 1 where none is given; 0 takes no new connections
  -n, --numeric                 ports as numbers
      --stats                   connections, packets and bytes
  -X, --exact                   numbers in full
      --timeout                 the time-outs
      --nosort                  in the schedulers' order, the real server added last first

The agent is found by its socket: LVS_XDP_SOCKET, else /run/lvs-xdp/agent.sock.

Example:
  ipvsadm -A -t 192.168.2.100:80 -s rr
  ipvsadm -a -t 192.168.2.100:80 -r 192.168.2.220 -g
  ipvsadm -a -t 192.168.2.100:80 -r 192.168.2.210 -g
  ipvsadm -L -n
"
    )
}
