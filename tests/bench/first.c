/* The job whose first instruction is timed: appends CLOCK_MONOTONIC in nanoseconds to the file it is given. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec now;
	char line[32];
	int file, size;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (argc != 2)
		return 2;
	file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
	size = snprintf(line, sizeof line, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
	return file >= 0 && write(file, line, size) == size ? 0 : 1;
}
