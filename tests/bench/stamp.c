/* The job whose first instruction is timed: `stamp FILE [GATE]` appends CLOCK_MONOTONIC in nanoseconds to FILE.
 * With GATE, a FIFO, it waits until something is written there, and the time is that of its exit.
 */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static int stamp(const char *path, const char *gate)
{
	struct timespec now;
	char line[32], byte;
	int file, size;

	if (!gate)
		clock_gettime(CLOCK_MONOTONIC, &now);
	file = open(path, O_WRONLY | O_APPEND);
	if (file < 0 || (gate && read(open(gate, O_RDONLY), &byte, 1) != 1))
		return 1;
	if (gate)
		clock_gettime(CLOCK_MONOTONIC, &now);
	size = snprintf(line, sizeof line, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
	return write(file, line, size) == size ? 0 : 1;
}

int main(int argc, char **argv)
{
	return argc == 2 || argc == 3 ? stamp(argv[1], argv[2]) : 2;
}
