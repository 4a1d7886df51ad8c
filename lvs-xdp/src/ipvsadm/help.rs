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
  ipvsadm -A|E SERVICE [-s SCHEDULER] [-b FLAG,...] [-p [SECONDS]] [-M MASK] [-o]
  ipvsadm -D SERVICE
  ipvsadm -C
  ipvsadm -a|e SERVICE -r RIP [-g|-i] [-w WEIGHT] [-x UPPER] [-y LOWER]
  ipvsadm -d SERVICE -r RIP
  ipvsadm -L|l [-n] [SERVICE] [--stats | --rate | --thresholds | --persistent-conn | --tun-info] [-X] [--nosort]
  ipvsadm -L|l -c [-n]
  ipvsadm -L|l --timeout
  ipvsadm -S [-n] [--full]
  ipvsadm -R
  ipvsadm -Z [SERVICE]
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
  -S, --save             show the commands that make them; with --full the thresholds, too, and what else
                         ipvsadm leaves out
  -R, --restore          do what such lines from standard input say: all or nothing; lines that begin
                         with # are comments, and every bad line is named
  -Z, --zero             set counters to 0, those of one service or all
      --set                  set the time-outs in seconds, 0 for one that stays
  -h, --help             show this text
  -v, --version          show the version of ipvsadm that is spoken

Service:
  -t, --tcp-service VIP:PORT    a TCP service; [VIP]:PORT where the VIP is IPv6
  -u, --udp-service VIP:PORT    a UDP service
      --sctp-service VIP:PORT   an SCTP service
  -f, --fwmark-service MARK     all that has a firewall mark (`lvs-xdp mark`); with -6 behind it of IPv6
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
  -n, --numeric                 addresses and ports as numbers
  -c, --connection              connections and persistence templates
      --stats                   connections, packets and bytes
      --rate                    the same in a second
  -X, --exact                   numbers in full
      --thresholds              -x and -y of the real servers
      --persistent-conn         persistence templates of the real servers
      --tun-info                tunnels of the real servers
      --timeout                 the time-outs
      --nosort                  in the schedulers' order, the real server added last first

What services and real servers have beyond ipvsadm (--full writes it, -A -E -a -e take it):
      --removal POLICY          what becomes of a removed real server's connections: drop, reschedule or reset
      --slow-start SECONDS      in which a real server comes up to its weight
      --stateless               a service with mh, sh or dh keeps no connections
      --settings NAME=N,...     in place of the director's, such as sloppy_tcp=1
      --drain [SECONDS]         a real server is being drained, until so many seconds after 1970 at the latest

The agent is found by its socket: LVS_XDP_SOCKET, else /run/lvs-xdp/agent.sock; or, over
the network, by LVS_XDP_CONNECT (`lvs-xdp --help`).

Example:
  ipvsadm -A -t 192.168.2.100:80 -s rr
  ipvsadm -a -t 192.168.2.100:80 -r 192.168.2.220 -g
  ipvsadm -a -t 192.168.2.100:80 -r 192.168.2.210 -g
  ipvsadm -L -n
"
    )
}
