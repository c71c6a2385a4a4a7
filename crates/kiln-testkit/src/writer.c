// writer DIR TEXT [PORT]: takes the lock DIR/lock, says SECOND WRITER in DIR/cries if somebody has
// it, adds TEXT to DIR/log every 20 ms, and goes on with that for 300 ms after SIGTERM. With PORT
// it listens there once it has said whether it is alone.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t ending;

static void end(int signal) {
  (void)signal;
  ending = 1;
}

static int file(const char *dir, const char *name, int flags) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  int fd = open(path, flags | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    perror(path);
    exit(1);
  }
  return fd;
}

static void say(int fd, const char *text) {
  char line[4096];
  int length = snprintf(line, sizeof line, "%s\n", text);
  if (write(fd, line, (size_t)length) != length) exit(2);
}

static void serve(const char *port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 16)) exit(3);
}

int main(int argc, char **argv) {
  if (argc < 3) return 64;
  struct sigaction action = {.sa_handler = end};
  sigaction(SIGTERM, &action, NULL);
  int lock = file(argv[1], "lock", O_RDWR);
  if (flock(lock, LOCK_EX | LOCK_NB))
    say(file(argv[1], "cries", O_WRONLY | O_APPEND), "SECOND WRITER");
  int log = file(argv[1], "log", O_WRONLY | O_APPEND);
  say(log, argv[2]);
  if (argc > 3) serve(argv[3]);
  for (int left = 15; left > 0; left -= ending) {
    struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    say(log, argv[2]);
  }
  return 0;
}
