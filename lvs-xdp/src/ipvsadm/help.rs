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
  ipvsadm -A|E SERVICE [-s SCHEDULER] [-b FLAG,...] [-p [SECONDS] [-M MASK]] [-o]
  ipvsadm -D SERVICE
  ipvsadm -C
  ipvsadm -a|e SERVICE -r RIP [-g|-i] [-w WEIGHT] [-x UPPER] [-y LOWER]
  ipvsadm -d SERVICE -r RIP
  ipvsadm -L|l [-n] [SERVICE] [--stats [-X] | --thresholds | --persistent-conn] [--nosort]
  ipvsadm -L|l -c [-n]
  ipvsadm -L|l --timeout
  ipvsadm -S [-n]
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
  -S, --save             show the commands that make them; without thresholds
      --set                  set the time-outs in seconds, 0 for one that stays
  -h, --help             show this text
  -v, --version          show the version of ipvsadm that is spoken

Service:
  -t, --tcp-service VIP:PORT    a TCP service; [VIP]:PORT where the VIP is IPv6
  -u, --udp-service VIP:PORT    a UDP service
      --sctp-service VIP:PORT   an SCTP service
                                port 0 is every port without a service of its own, and takes -p

Options:
  -s, --scheduler SCHEDULER     {schedulers};
                                {default} where none is given
  -b, --sched-flags FLAG,...    sh-fallback sh-port (sh), mh-fallback mh-port (mh)
  -p, --persistent [SECONDS]    a client stays with its real server; 1 to 2678400, 360 where none is given
  -M, --netmask MASK            who is one client: an IPv4 netmask, or an IPv6 prefix length after the service
  -o, --ops                     each packet of a UDP service is scheduled by itself
  -r, --real-server RIP         a real server; its port is the service's
  -g, --gatewaying              direct routing, which is the default
  -i, --ipip                    tunnelling, for real servers on other segments
      --tun-type TYPE           ipip (the default), gue or gre
      --tun-port PORT           of gue: the port on which the real server listens
      --tun-nocsum, --tun-csum, --tun-remcsum
                                of gue and gre: without a checksum (the default),
                                with one; of gue: remote checksum offload
  -w, --weight WEIGHT           0 to 2147483647, 1 where none is given; 0 takes no new connections
  -x, --u-threshold UPPER       with so many connections it takes no new ones; 0, the default, is no limit
  -y, --l-threshold LOWER       below so many it takes new ones again; 0, the default, is three quarters of -x
  -n, --numeric                 ports as numbers
  -c, --connection              connections and persistence templates
      --stats                   connections, packets and bytes
  -X, --exact                   numbers in full
      --thresholds              -x and -y of the real servers
      --persistent-conn         persistence templates of the real servers
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
