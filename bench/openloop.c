/* An open-loop generator of purchases: request i is due at i / RATE seconds, however slowly the server answers.
 *
 *   openloop PORT RATE SECONDS CONNECTIONS kept|new async|sync PRODUCT FIRST_USER
 *
 * kept: requests go out on CONNECTIONS connections, which are open before the first one is due, as those of buyers who
 * wait for the start are. new: each request has its own connection, of which up to CONNECTIONS are open at a time. A
 * request that is due while none is free waits, and the wait counts: a latency is the time from when the request was
 * due to its whole answer. What is not sent by the end stays unsent. Only 127.0.0.1 is ever called, from several
 * addresses of 127.0.0.0/8, so that a port is never reused at once.
 *
 * Prints one line of JSON: what was offered, sent and answered by status, latencies of accepted and of refused requests
 * (percentiles, ms), and by second what was accepted. It is in C because the generator shares the machine with what it
 * measures: one request costs it 5 us of CPU time, and a Go client would take 30. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 4096, REQUEST = 512, STATUSES = 600, SECONDS_MAX = 600, SOURCES = 40, EVENTS = 512, AT_ONCE = 100, OPEN_TIMEOUT_MS = 10000 };
enum { BUCKETS = 20000 /* of 0.5 ms each: 10 s */, GRACE_S = 10 };

struct connection {
  int fd, length, is_busy, is_connecting;
  double due_s;
  char buffer[BUFFER];
};

static struct connection *connections;
static int *idle, idle_count, connections_max, epoll_fd, port, is_new, source;
static const char *path, *product;
static long user, sent, broken, by_status[STATUSES], accepted_in[SECONDS_MAX], refused_in[SECONDS_MAX];
static long accepted_ms[BUCKETS + 1], refused_ms[BUCKETS + 1];
static double began_s;

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void watch(struct connection *c, int operation, unsigned events) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  if (epoll_ctl(epoll_fd, operation, c->fd, &e) < 0) die("epoll_ctl");
}

static void drop(struct connection *c) {
  struct linger at_once = {1, 0};
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close(c->fd);
  c->fd = -1;
}

static void finish(struct connection *c) {
  c->is_busy = 0;
  idle[idle_count++] = (int)(c - connections);
}

static void fail(struct connection *c) {
  broken++;
  drop(c);
  finish(c);
}

static int dial(struct connection *c) {
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct sockaddr_in self = {.sin_family = AF_INET};
  int one = 1;
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  self.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + source++ % SOURCES);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) die("socket");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (bind(c->fd, (struct sockaddr *)&self, sizeof self) < 0) die("bind");
  if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) return -1;
  c->is_connecting = 1;
  watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
  return 0;
}

static void write_request(struct connection *c) {
  char body[160], request[REQUEST];
  int body_length = snprintf(body, sizeof body, "{\"product_id\":\"%s\",\"user_id\":\"u%ld\"}", product, user++);
  int length = snprintf(request, sizeof request,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n%s"
                        "Content-Length: %d\r\n\r\n%s",
                        path, is_new ? "Connection: close\r\n" : "", body_length, body);
  c->length = 0;
  if (send(c->fd, request, length, MSG_NOSIGNAL) != length) fail(c);
  else sent++;
}

static void start(double due_s) {
  struct connection *c = &connections[idle[--idle_count]];
  c->is_busy = 1;
  c->due_s = due_s;
  if (c->fd >= 0) write_request(c);
  else if (dial(c) < 0) fail(c);
}

static void answered(struct connection *c, int status, double at_s) {
  long bucket = (long)((at_s - c->due_s) * 2000);
  int second = (int)(at_s - began_s);
  if (bucket > BUCKETS) bucket = BUCKETS;
  by_status[status < STATUSES ? status : 0]++;
  (status < 300 ? accepted_ms : refused_ms)[bucket]++;
  if (second < SECONDS_MAX) (status < 300 ? accepted_in : refused_in)[second]++;
  if (is_new) drop(c);
  finish(c);
}

static void receive(struct connection *c) {
  int got = recv(c->fd, c->buffer + c->length, BUFFER - 1 - c->length, 0);
  char *end, *field;
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    if (c->is_busy) fail(c);
    else drop(c); /* an idle connection that the server closed: the next request opens another */
    return;
  }
  c->length += got;
  c->buffer[c->length] = 0;
  if ((end = strstr(c->buffer, "\r\n\r\n")) == NULL) return;
  if ((field = strcasestr(c->buffer, "\r\nContent-Length:")) == NULL || field > end) { fail(c); return; }
  if (c->buffer + c->length < end + 4 + atoi(field + 17)) return;
  answered(c, atoi(c->buffer + 9), now_s());
}

static int is_connected(struct connection *c) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) return 0;
  c->is_connecting = 0;
  watch(c, EPOLL_CTL_MOD, EPOLLIN);
  return 1;
}

static void handle(struct epoll_event *e) {
  struct connection *c = e->data.ptr;
  if (c->fd < 0) return;
  if (!c->is_connecting) receive(c);
  else if (is_connected(c)) write_request(c);
  else fail(c);
}

/* Opens all connections, some at a time, so that none finds the backlog full. */
static void open_all(void) {
  struct epoll_event events[AT_ONCE];
  for (int first = 0; first < connections_max; first += AT_ONCE) {
    int waiting = 0;
    for (int i = first; i < connections_max && i < first + AT_ONCE; i++, waiting++)
      if (dial(&connections[i]) < 0) die("connect");
    while (waiting > 0) {
      int count = epoll_wait(epoll_fd, events, AT_ONCE, OPEN_TIMEOUT_MS);
      if (count <= 0) die("opening connections");
      for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c->is_connecting || !is_connected(c)) die("connect");
        waiting--;
      }
    }
  }
}

static double percentile(const long *buckets, double fraction) {
  long total = 0, seen = 0;
  for (int i = 0; i <= BUCKETS; i++) total += buckets[i];
  for (int i = 0; i <= BUCKETS; i++)
    if ((seen += buckets[i]) >= total * fraction && total) return (i + 1) / 2.0;
  return 0;
}

static void print_latencies(const char *name, const long *buckets) {
  printf("\"%s\":{\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f},", name, percentile(buckets, 0.5),
         percentile(buckets, 0.99), percentile(buckets, 1.0));
}

static void print_seconds(const char *name, const long *counts, int seconds) {
  printf("\"%s\":[", name);
  for (int i = 0; i < seconds; i++) printf("%s%ld", i ? "," : "", counts[i]);
  printf("],");
}

static void report(long offered, int seconds) {
  struct rusage used;
  int first = 1;
  getrusage(RUSAGE_SELF, &used);
  printf("{\"offered\":%ld,\"sent\":%ld,\"broken\":%ld,\"statuses\":{", offered, sent, broken);
  for (int i = 0; i < STATUSES; i++)
    if (by_status[i]) {
      printf("%s\"%d\":%ld", first ? "" : ",", i, by_status[i]);
      first = 0;
    }
  printf("},");
  print_latencies("accepted_ms", accepted_ms);
  print_latencies("refused_ms", refused_ms);
  print_seconds("accepted_in", accepted_in, seconds);
  print_seconds("refused_in", refused_in, seconds);
  printf("\"cpu_s\":%.2f}\n", used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                                  (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
}

int main(int argc, char **argv) {
  if (argc != 9) {
    fprintf(stderr, "usage: openloop PORT RATE SECONDS CONNECTIONS kept|new async|sync PRODUCT FIRST_USER\n");
    return 2;
  }
  port = atoi(argv[1]);
  double rate = atof(argv[2]);
  int seconds = atoi(argv[3]);
  connections_max = atoi(argv[4]);
  is_new = !strcmp(argv[5], "new");
  path = strcmp(argv[6], "sync") ? "/api/v1/seckill/purchase/async" : "/api/v1/seckill/purchase";
  product = argv[7];
  user = atol(argv[8]);
  if (rate <= 0 || seconds < 1 || seconds > SECONDS_MAX || connections_max < 1) return 2;
  struct rlimit files = {connections_max + 64, connections_max + 64};
  if (setrlimit(RLIMIT_NOFILE, &files) < 0) die("setrlimit");
  connections = calloc(connections_max, sizeof *connections);
  idle = calloc(connections_max, sizeof *idle);
  for (int i = connections_max - 1; i >= 0; i--) {
    connections[i].fd = -1;
    idle[idle_count++] = i;
  }
  if ((epoll_fd = epoll_create1(0)) < 0) die("epoll_create1");
  if (!is_new) open_all();
  began_s = now_s();
  long offered = (long)(rate * seconds), next = 0;
  struct epoll_event events[EVENTS];
  for (;;) {
    double at_s = now_s();
    while (next < offered && idle_count && began_s + next / rate <= at_s && at_s < began_s + seconds) {
      start(began_s + next / rate);
      next++;
    }
    if ((next >= offered || at_s >= began_s + seconds) && idle_count == connections_max) break;
    if (at_s > began_s + seconds + GRACE_S) break;
    double until_s = next < offered && idle_count ? began_s + next / rate - now_s() : 0.1;
    int timeout_ms = until_s <= 0 ? 0 : until_s < 0.001 ? 1 : (int)(until_s * 1000);
    int count = epoll_wait(epoll_fd, events, EVENTS, timeout_ms);
    for (int i = 0; i < count; i++) handle(&events[i]);
  }
  report(offered, seconds);
  return 0;
}
