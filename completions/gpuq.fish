# Made by `gpuq completion fish`; not to be edited.

# The words after gpuq and its own options, without the one being typed.
function __gpuq_words
    set -l words (commandline -opc)[2..-1]
    while set -q words[1]; and string match -q -- '-*' $words[1]
        set -e words[1]
    end
    string join \n -- $words
end

function __gpuq_no_verb
    set -l words (__gpuq_words)
    not set -q words[1]
end

# Whether the verb is the first argument, and the second, if given, the verb of its group.
function __gpuq_verb
    set -l words (__gpuq_words)
    test "$words[1]" = $argv[1]; or return 1
    set -q argv[2]; or return 0
    test "$words[2]" = $argv[2]
end

function __gpuq_group
    set -l words (__gpuq_words)
    test "$words[1]" = $argv[1]; and not set -q words[2]
end

# The words of the command that is submitted; fails while options of ours are being typed.
function __gpuq_command
    set -l words (__gpuq_words)
    contains -- "$words[1]" submit run; or return 1
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case --
                set -e words[1]
                string join \n -- $words
                return 0
            case --from -a --array -J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu -c --cpus --ram -t --time -p --priority -d --after -b --begin --tag -D --cwd --env --export -o --output --signal --grace --log-limit --retry --queue --group --stop-after
                set -e words[1]
                set -e words[1]
            case '-*'
                set -e words[1]
            case '*'
                string join \n -- $words
                return 0
        end
    end
    # nothing but options so far: the command begins here, unless an option or its value is being typed
    string match -q -- '-*' (commandline -ct); and return 1
    set -l words (__gpuq_words)
    not contains -- "$words[-1]" --from -a --array -J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu -c --cpus --ram -t --time -p --priority -d --after -b --begin --tag -D --cwd --env --export -o --output --signal --grace --log-limit --retry --queue --group --stop-after
end

function __gpuq_options
    __gpuq_verb $argv; or return 1
    contains -- "$argv[1]" submit run; or return 0
    set -l command (__gpuq_command); or return 0
    set -l words (__gpuq_words)
    not set -q command[1]; and test "$words[-1]" != --
end

function __gpuq_complete_command
    set -l command (string escape -- (__gpuq_command)) (commandline -ct)
    complete -C"$command"
end

function __gpuq_ids
    gpuq complete-ids $argv[1] 2>/dev/null
    echo @last\t'the newest job'
end

function __gpuq_after
    set -l before '^(?:.*[,|])?(?:(?:ok|any|failed|started):)?(?:(?:array|each):)?'
    set -l prefix (string match -r $before -- (commandline -ct))
    __gpuq_ids all | string replace -r '^' -- "$prefix"
end

complete -c gpuq -f
complete -c gpuq -n __gpuq_no_verb -s h -l help -d 'Show the help'
complete -c gpuq -n __gpuq_no_verb -l version -d 'Print the version'
complete -c gpuq -n __gpuq_command -a '(__gpuq_complete_command)'
complete -c gpuq -n __gpuq_no_verb -a submit -d 'Queue a command, an array, or a file of commands.'
complete -c gpuq -n '__gpuq_options submit' -l from -d 'A shell command per line, `-` for stdin; blank and # lines are none. All are queued or none' -r -F
complete -c gpuq -n '__gpuq_options submit' -s a -l array -d 'One job per index: 0-99, 1,3,5-9, 0-10:2; %4 runs 4 at a time' -x
complete -c gpuq -n '__gpuq_options submit' -s J -l name -d 'Name; the program\'s own if not given' -x
complete -c gpuq -n '__gpuq_options submit' -s g -l gpus -d 'GPUs; 0 for a CPU job, 1 if not given and there are GPUs. 1:4 starts with 1 at least, and takes up to 4 that have room then; GPUQ_GPU_COUNT tells the job how many' -x
complete -c gpuq -n '__gpuq_options submit' -l vram -d 'GPU memory to claim on each GPU (10GiB), or \'whole\'; whole GPUs if not given' -x
complete -c gpuq -n '__gpuq_options submit' -l gpu-type -d 'Only GPUs with one of these in their product name, as `gpuq gpus` shows it, in any case: \'A100|H100\'' -x
complete -c gpuq -n '__gpuq_options submit' -l gpu-min-memory -d 'Only GPUs with so much memory in all (40GiB); `gpuq gpus` shows it, often a little less than what they are sold with' -x
complete -c gpuq -n '__gpuq_options submit' -l gpu-id -d 'Only one of these GPUs, or --gpus of them: each by index, UUID, or how its UUID begins. Repeat, or separate by commas' -x
complete -c gpuq -n '__gpuq_options submit' -l exclude-gpu -d 'None of these GPUs' -x
complete -c gpuq -n '__gpuq_options submit' -l spread -d 'Take the emptiest GPUs, not the fullest that have room; with whole GPUs the largest; and of several not those that are closest to each other'
complete -c gpuq -n '__gpuq_options submit' -s c -l cpus -d 'CPUs; 1 for a CPU job and 0, not counted, for a GPU job' -x
complete -c gpuq -n '__gpuq_options submit' -l ram -d 'Host memory to reserve (16GiB)' -x
complete -c gpuq -n '__gpuq_options submit' -s t -l time -d 'Time limit: 90s, 30m, 2h, 1d or H:MM:SS' -x
complete -c gpuq -n '__gpuq_options submit' -s p -l priority -d 'Larger starts first: -1000 to 1000' -x
complete -c gpuq -n '__gpuq_options submit' -s d -l after -d 'Start after that job succeeded, ended, failed or started; ok if not said. 12-20, array:12, tag=NAME: after each of those. each:12, in an array: after the member of that one with the same index. \'ok:1|failed:2\' is one of them. Repeat, or separate by commas, for all of several' -x -a '(__gpuq_after)'
complete -c gpuq -n '__gpuq_options submit' -s b -l begin -d 'Not before: now+1h, 2h, 16:00 or 2026-11-23T08:00' -x
complete -c gpuq -n '__gpuq_options submit' -s H -l hold -d 'Wait for `gpuq release`'
complete -c gpuq -n '__gpuq_options submit' -l tag -d 'A label to choose jobs by; repeat for several' -x
complete -c gpuq -n '__gpuq_options submit' -s D -l cwd -d 'Folder to run in; this one if not given' -x -a '(__fish_complete_directories (commandline -ct))'
complete -c gpuq -n '__gpuq_options submit' -l env -d 'Set a variable; repeat for several' -x
complete -c gpuq -n '__gpuq_options submit' -l export -d 'Which of your variables the job gets; all if not given' -x
complete -c gpuq -n '__gpuq_options submit' -s o -l output -d 'Log file; %j is the id, %A the array\'s, %a the index, %x the name' -r -F
complete -c gpuq -n '__gpuq_options submit' -l signal -d 'So long before the time limit, send that to those processes that handle it: USR1@300, TERM@5m' -x
complete -c gpuq -n '__gpuq_options submit' -l grace -d 'Time between TERM and KILL; the setting\'s if not given' -x
complete -c gpuq -n '__gpuq_options submit' -l log-limit -d 'Keep this much of the log (64KiB at least): its beginning and end' -x
complete -c gpuq -n '__gpuq_options submit' -l retry -d 'Try again after a failure: 2 (any but lost), vram-oom:2*1.5 (a larger claim each time), lost,gpu-lost:3. Repeat; each rule has its own count, and a named failure goes by its own rule. Failures: exit, signal, timeout, vram-oom, host-oom, gpu-lost, over-memory, launch, lost' -x
complete -c gpuq -n '__gpuq_options submit' -l requeue -d 'Try again, up to 10 times, when lost to a crash or reboot'
complete -c gpuq -n '__gpuq_options submit' -l preemptible -d 'Give way to jobs of higher priority that cannot start otherwise: TERM, --grace, and queued again'
complete -c gpuq -n '__gpuq_options submit' -l queue -d 'Queue; `gpuq queue list` shows them' -x
complete -c gpuq -n '__gpuq_options submit' -l group -d 'Jobs that stop together; see --stop-after' -x
complete -c gpuq -n '__gpuq_options submit' -l stop-after -d 'After N failures in a row nothing more of the group starts, or of the array, until `gpuq group resume`' -x
complete -c gpuq -n '__gpuq_options submit' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options submit' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options submit' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a run -d 'Submit, print the log, and exit with the job\'s code.'
complete -c gpuq -n '__gpuq_options run' -s J -l name -d 'Name; the program\'s own if not given' -x
complete -c gpuq -n '__gpuq_options run' -s g -l gpus -d 'GPUs; 0 for a CPU job, 1 if not given and there are GPUs. 1:4 starts with 1 at least, and takes up to 4 that have room then; GPUQ_GPU_COUNT tells the job how many' -x
complete -c gpuq -n '__gpuq_options run' -l vram -d 'GPU memory to claim on each GPU (10GiB), or \'whole\'; whole GPUs if not given' -x
complete -c gpuq -n '__gpuq_options run' -l gpu-type -d 'Only GPUs with one of these in their product name, as `gpuq gpus` shows it, in any case: \'A100|H100\'' -x
complete -c gpuq -n '__gpuq_options run' -l gpu-min-memory -d 'Only GPUs with so much memory in all (40GiB); `gpuq gpus` shows it, often a little less than what they are sold with' -x
complete -c gpuq -n '__gpuq_options run' -l gpu-id -d 'Only one of these GPUs, or --gpus of them: each by index, UUID, or how its UUID begins. Repeat, or separate by commas' -x
complete -c gpuq -n '__gpuq_options run' -l exclude-gpu -d 'None of these GPUs' -x
complete -c gpuq -n '__gpuq_options run' -l spread -d 'Take the emptiest GPUs, not the fullest that have room; with whole GPUs the largest; and of several not those that are closest to each other'
complete -c gpuq -n '__gpuq_options run' -s c -l cpus -d 'CPUs; 1 for a CPU job and 0, not counted, for a GPU job' -x
complete -c gpuq -n '__gpuq_options run' -l ram -d 'Host memory to reserve (16GiB)' -x
complete -c gpuq -n '__gpuq_options run' -s t -l time -d 'Time limit: 90s, 30m, 2h, 1d or H:MM:SS' -x
complete -c gpuq -n '__gpuq_options run' -s p -l priority -d 'Larger starts first: -1000 to 1000' -x
complete -c gpuq -n '__gpuq_options run' -s d -l after -d 'Start after that job succeeded, ended, failed or started; ok if not said. 12-20, array:12, tag=NAME: after each of those. each:12, in an array: after the member of that one with the same index. \'ok:1|failed:2\' is one of them. Repeat, or separate by commas, for all of several' -x -a '(__gpuq_after)'
complete -c gpuq -n '__gpuq_options run' -s b -l begin -d 'Not before: now+1h, 2h, 16:00 or 2026-11-23T08:00' -x
complete -c gpuq -n '__gpuq_options run' -s H -l hold -d 'Wait for `gpuq release`'
complete -c gpuq -n '__gpuq_options run' -l tag -d 'A label to choose jobs by; repeat for several' -x
complete -c gpuq -n '__gpuq_options run' -s D -l cwd -d 'Folder to run in; this one if not given' -x -a '(__fish_complete_directories (commandline -ct))'
complete -c gpuq -n '__gpuq_options run' -l env -d 'Set a variable; repeat for several' -x
complete -c gpuq -n '__gpuq_options run' -l export -d 'Which of your variables the job gets; all if not given' -x
complete -c gpuq -n '__gpuq_options run' -s o -l output -d 'Log file; %j is the id, %A the array\'s, %a the index, %x the name' -r -F
complete -c gpuq -n '__gpuq_options run' -l signal -d 'So long before the time limit, send that to those processes that handle it: USR1@300, TERM@5m' -x
complete -c gpuq -n '__gpuq_options run' -l grace -d 'Time between TERM and KILL; the setting\'s if not given' -x
complete -c gpuq -n '__gpuq_options run' -l log-limit -d 'Keep this much of the log (64KiB at least): its beginning and end' -x
complete -c gpuq -n '__gpuq_options run' -l retry -d 'Try again after a failure: 2 (any but lost), vram-oom:2*1.5 (a larger claim each time), lost,gpu-lost:3. Repeat; each rule has its own count, and a named failure goes by its own rule. Failures: exit, signal, timeout, vram-oom, host-oom, gpu-lost, over-memory, launch, lost' -x
complete -c gpuq -n '__gpuq_options run' -l requeue -d 'Try again, up to 10 times, when lost to a crash or reboot'
complete -c gpuq -n '__gpuq_options run' -l preemptible -d 'Give way to jobs of higher priority that cannot start otherwise: TERM, --grace, and queued again'
complete -c gpuq -n '__gpuq_options run' -l queue -d 'Queue; `gpuq queue list` shows them' -x
complete -c gpuq -n '__gpuq_options run' -l group -d 'Jobs that stop together; see --stop-after' -x
complete -c gpuq -n '__gpuq_options run' -l stop-after -d 'After N failures in a row nothing more of the group starts, or of the array, until `gpuq group resume`' -x
complete -c gpuq -n '__gpuq_options run' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a edit -d 'Change what waiting jobs ask for.'
complete -c gpuq -n '__gpuq_options edit' -s J -l name -d 'Name' -x
complete -c gpuq -n '__gpuq_options edit' -s g -l gpus -d 'GPUs; 0 for a CPU job' -x
complete -c gpuq -n '__gpuq_options edit' -l vram -d 'GPU memory on each GPU, or \'whole\'' -x
complete -c gpuq -n '__gpuq_options edit' -l gpu-type -d 'Only GPUs with one of these names' -x
complete -c gpuq -n '__gpuq_options edit' -l gpu-min-memory -d 'Only GPUs with so much memory in all' -x
complete -c gpuq -n '__gpuq_options edit' -l gpu-id -d 'Only these GPUs' -x
complete -c gpuq -n '__gpuq_options edit' -l exclude-gpu -d 'None of these GPUs' -x
complete -c gpuq -n '__gpuq_options edit' -l spread -d 'Take the emptiest GPUs'
complete -c gpuq -n '__gpuq_options edit' -s c -l cpus -d 'CPUs' -x
complete -c gpuq -n '__gpuq_options edit' -l ram -d 'Host memory to reserve' -x
complete -c gpuq -n '__gpuq_options edit' -s t -l time -d 'Time limit' -x
complete -c gpuq -n '__gpuq_options edit' -s p -l priority -d 'Larger starts first' -x
complete -c gpuq -n '__gpuq_options edit' -l queue -d 'Queue to move to' -x
complete -c gpuq -n '__gpuq_options edit' -s d -l after -d 'What to wait for instead; as of `submit`' -x -a '(__gpuq_after)'
complete -c gpuq -n '__gpuq_options edit' -s b -l begin -d 'Not before' -x
complete -c gpuq -n '__gpuq_options edit' -l tag -d 'Labels instead of those there are; repeat' -x
complete -c gpuq -n '__gpuq_options edit' -l group -d 'Jobs that stop together' -x
complete -c gpuq -n '__gpuq_options edit' -l stop-after -d 'Failures after which they do' -x
complete -c gpuq -n '__gpuq_options edit' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options edit' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options edit' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb edit' -a '(__gpuq_ids waiting)'
complete -c gpuq -n __gpuq_no_verb -a cancel -d 'Cancel waiting or running jobs.'
complete -c gpuq -n '__gpuq_options cancel' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options cancel' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options cancel' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options cancel' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options cancel' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options cancel' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb cancel' -a '(__gpuq_ids live)'
complete -c gpuq -n __gpuq_no_verb -a hold -d 'Keep waiting jobs from starting.'
complete -c gpuq -n '__gpuq_options hold' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options hold' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options hold' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options hold' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options hold' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options hold' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb hold' -a '(__gpuq_ids queued)'
complete -c gpuq -n __gpuq_no_verb -a release -d 'Let held jobs start.'
complete -c gpuq -n '__gpuq_options release' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options release' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options release' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options release' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options release' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options release' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb release' -a '(__gpuq_ids held)'
complete -c gpuq -n __gpuq_no_verb -a suspend -d 'Stop running jobs where they are; they keep their GPUs.'
complete -c gpuq -n '__gpuq_options suspend' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options suspend' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options suspend' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options suspend' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options suspend' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options suspend' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb suspend' -a '(__gpuq_ids running)'
complete -c gpuq -n __gpuq_no_verb -a resume -d 'Let suspended jobs go on.'
complete -c gpuq -n '__gpuq_options resume' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options resume' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options resume' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options resume' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options resume' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options resume' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb resume' -a '(__gpuq_ids suspended)'
complete -c gpuq -n __gpuq_no_verb -a retry -d 'Queue ended jobs again, as a new attempt.'
complete -c gpuq -n '__gpuq_options retry' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options retry' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options retry' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options retry' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options retry' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options retry' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb retry' -a '(__gpuq_ids ended)'
complete -c gpuq -n __gpuq_no_verb -a wait -d 'Wait until jobs have ended.'
complete -c gpuq -n '__gpuq_options wait' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options wait' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options wait' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options wait' -l any -d 'Until the first of them ended; exit with its code'
complete -c gpuq -n '__gpuq_options wait' -l timeout -d 'Give up after this time' -x
complete -c gpuq -n '__gpuq_options wait' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options wait' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options wait' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb wait' -a '(__gpuq_ids live)'
complete -c gpuq -n __gpuq_no_verb -a list -d 'Show jobs: running first, then waiting.'
complete -c gpuq -n '__gpuq_options list' -s a -l all -d 'Ended jobs too, newest first'
complete -c gpuq -n '__gpuq_options list' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options list' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options list' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options list' -s n -d 'At most this many rows, 0 for all; on a terminal 50 if not given' -x
complete -c gpuq -n '__gpuq_options list' -l start -d 'When waiting jobs will start, as far as one can say'
complete -c gpuq -n '__gpuq_options list' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options list' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options list' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb list' -a '(__gpuq_ids all)'
complete -c gpuq -n __gpuq_no_verb -a show -d 'Show everything about a job.'
complete -c gpuq -n '__gpuq_options show' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options show' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options show' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options show' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options show' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb show' -a '(__gpuq_ids all)'
complete -c gpuq -n __gpuq_no_verb -a why -d 'Say why a job waits, with the numbers behind it.'
complete -c gpuq -n '__gpuq_options why' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options why' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options why' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options why' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options why' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb why' -a '(__gpuq_ids all)'
complete -c gpuq -n __gpuq_no_verb -a logs -d 'Print a job\'s output.'
complete -c gpuq -n '__gpuq_options logs' -s f -l follow -d 'Go on as it grows, until the job has ended'
complete -c gpuq -n '__gpuq_options logs' -s n -d 'Only the last lines' -x
complete -c gpuq -n '__gpuq_options logs' -l attempt -d 'Of this attempt; the newest if not given' -x
complete -c gpuq -n '__gpuq_options logs' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb logs' -a '(__gpuq_ids all)'
complete -c gpuq -n __gpuq_no_verb -a gpus -d 'Show the GPUs and who uses their memory; disable and enable them.'
complete -c gpuq -n '__gpuq_options gpus' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options gpus' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group gpus' -a disable -d 'Start no new job on these GPUs, until `gpuq gpus enable`; what runs there goes on.'
complete -c gpuq -n '__gpuq_options gpus disable' -l why -d 'Shown to whoever asks why' -x
complete -c gpuq -n '__gpuq_options gpus disable' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options gpus disable' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group gpus' -a enable -d 'Let jobs start again on GPUs that were disabled.'
complete -c gpuq -n '__gpuq_options gpus enable' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options gpus enable' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a top -d 'Watch GPUs, running jobs and the queue.'
complete -c gpuq -n '__gpuq_options top' -l once -d 'Print one frame, and leave'
complete -c gpuq -n '__gpuq_options top' -l svg -d 'Write one frame as an SVG picture' -r -F
complete -c gpuq -n '__gpuq_options top' -l json -d 'Print one frame as a JSON object'
complete -c gpuq -n '__gpuq_options top' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a events -d 'Show what happened.'
complete -c gpuq -n '__gpuq_options events' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options events' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options events' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options events' -s f -l follow -d 'Go on with what happens next'
complete -c gpuq -n '__gpuq_options events' -s n -d 'The last N; 0 for all that are kept' -x
complete -c gpuq -n '__gpuq_options events' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options events' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb events' -a '(__gpuq_ids all)'
complete -c gpuq -n __gpuq_no_verb -a stats -d 'Say what jobs waited, ran, used and failed of.'
complete -c gpuq -n '__gpuq_options stats' -l since -d 'Of jobs that ended in the last 24h, 7d, …; of all' -x
complete -c gpuq -n '__gpuq_options stats' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options stats' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a simulate -d 'Try a policy, or other GPUs, on what ran, or on a trace.'
complete -c gpuq -n '__gpuq_options simulate' -l policy -d 'fifo, fit-first, easy, sjf, current; all if not given' -x
complete -c gpuq -n '__gpuq_options simulate' -s g -l gpus -d '8, 8x80GiB or 2x24GiB,4x80GiB; the host\'s if not given' -x
complete -c gpuq -n '__gpuq_options simulate' -l what-if -d 'Compare with other GPUs: gpus=+2, gpus=-1, gpus=16, gpus=+2x80GiB' -x
complete -c gpuq -n '__gpuq_options simulate' -l since -d 'History: submitted since 30d ago, or 2026-11-01' -x
complete -c gpuq -n '__gpuq_options simulate' -l until -d 'History: submitted before, as --since' -x
complete -c gpuq -n '__gpuq_options simulate' -l gantt -d 'Draw who had which GPU when'
complete -c gpuq -n '__gpuq_options simulate' -l jobs -d 'With --json: also when and where each job ran'
complete -c gpuq -n '__gpuq_options simulate' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options simulate' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb simulate' -F
complete -c gpuq -n __gpuq_no_verb -a queue -d 'Queues: their priority, limits and GPUs; pause and drain them.'
complete -c gpuq -n '__gpuq_group queue' -a list -d 'Show the queues: jobs that run and wait, GPUs in use and allowed, and limits.'
complete -c gpuq -n '__gpuq_options queue list' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options queue list' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group queue' -a set -d 'Make a queue, or change what is named of it; `none` takes a limit away.'
complete -c gpuq -n '__gpuq_options queue set' -s p -l priority -d 'Added to that of each of its jobs' -x
complete -c gpuq -n '__gpuq_options queue set' -l gpus -d 'GPUs that its jobs may have: indexes or UUIDs' -x
complete -c gpuq -n '__gpuq_options queue set' -l default-time -d 'Time limit of jobs that name none' -x
complete -c gpuq -n '__gpuq_options queue set' -l max-time -d 'Longest time limit that a job may have' -x
complete -c gpuq -n '__gpuq_options queue set' -l max-jobs -d 'Most jobs that run at a time' -x
complete -c gpuq -n '__gpuq_options queue set' -l max-gpus -d 'Most GPUs that these have in all' -x
complete -c gpuq -n '__gpuq_options queue set' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options queue set' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group queue' -a pause -d 'Start nothing more of a queue, until `gpuq queue resume`.'
complete -c gpuq -n '__gpuq_options queue pause' -l why -d 'Shown to whoever asks why a job waits' -x
complete -c gpuq -n '__gpuq_options queue pause' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options queue pause' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group queue' -a drain -d 'Take no new jobs into a queue, and start what it has.'
complete -c gpuq -n '__gpuq_options queue drain' -l why -d 'Shown to whoever asks why a job waits' -x
complete -c gpuq -n '__gpuq_options queue drain' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options queue drain' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group queue' -a resume -d 'Let a queue that is paused or draining go on.'
complete -c gpuq -n '__gpuq_options queue resume' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options queue resume' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group queue' -a remove -d 'Remove a queue in which no jobs wait or run.'
complete -c gpuq -n '__gpuq_options queue remove' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options queue remove' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a group -d 'Groups of jobs that stop together after failures.'
complete -c gpuq -n '__gpuq_group group' -a list -d 'Show groups in which jobs wait or run, and those of which the last jobs failed.'
complete -c gpuq -n '__gpuq_options group list' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options group list' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group group' -a resume -d 'Let a group that has stopped go on; its failures are counted anew.'
complete -c gpuq -n '__gpuq_options group resume' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options group resume' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a prune -d 'Remove ended jobs, with their logs.'
complete -c gpuq -n '__gpuq_options prune' -l older -d 'Only jobs ended so long ago' -x
complete -c gpuq -n '__gpuq_options prune' -l larger -d 'Only jobs that left at least so much on disk' -x
complete -c gpuq -n '__gpuq_options prune' -l state -d 'Only jobs in these states' -x -a 'held queued running suspended succeeded failed cancelled skipped'
complete -c gpuq -n '__gpuq_options prune' -l tag -d 'Only jobs with this tag; repeat for several' -x
complete -c gpuq -n '__gpuq_options prune' -l group -d 'Only jobs of this group; array:12 is array 12' -x
complete -c gpuq -n '__gpuq_options prune' -l all -d 'Every job that has ended'
complete -c gpuq -n '__gpuq_options prune' -l logs-only -d 'Remove logs, keep the jobs'
complete -c gpuq -n '__gpuq_options prune' -l dry-run -d 'Only say what would go'
complete -c gpuq -n '__gpuq_options prune' -s y -l yes -d 'Do not ask'
complete -c gpuq -n '__gpuq_options prune' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options prune' -s q -l quiet -d 'Print ids only, one per line'
complete -c gpuq -n '__gpuq_options prune' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb prune' -a '(__gpuq_ids all)'
complete -c gpuq -n __gpuq_no_verb -a db -d 'Check, copy and restore the queue\'s database.'
complete -c gpuq -n '__gpuq_group db' -a check -d 'Read the whole database and say whether it is whole; exit code 1 if it is damaged.'
complete -c gpuq -n '__gpuq_options db check' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options db check' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group db' -a backup -d 'Copy the database while the queue goes on; without FILE into `backups/` of the state folder.'
complete -c gpuq -n '__gpuq_options db backup' -l force -d 'Replace FILE if it exists'
complete -c gpuq -n '__gpuq_options db backup' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options db backup' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb db backup' -F
complete -c gpuq -n '__gpuq_group db' -a restore -d 'Go on with a copy of the database, which is checked first.'
complete -c gpuq -n '__gpuq_options db restore' -s y -l yes -d 'Do not ask'
complete -c gpuq -n '__gpuq_options db restore' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options db restore' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb db restore' -F
complete -c gpuq -n __gpuq_no_verb -a daemon -d 'Start, stop and look at the daemon.'
complete -c gpuq -n '__gpuq_group daemon' -a start -d 'Start the daemon if it does not run.'
complete -c gpuq -n '__gpuq_options daemon start' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group daemon' -a stop -d 'Stop the daemon.'
complete -c gpuq -n '__gpuq_options daemon stop' -l jobs -d 'Cancel the running jobs first'
complete -c gpuq -n '__gpuq_options daemon stop' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group daemon' -a restart -d 'Replace the daemon, as after an upgrade or a change of settings.'
complete -c gpuq -n '__gpuq_options daemon restart' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group daemon' -a install -d 'Let systemd run the daemon: from boot on, and again should it fail.'
complete -c gpuq -n '__gpuq_options daemon install' -l print -d 'Print the unit, and do nothing else'
complete -c gpuq -n '__gpuq_options daemon install' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group daemon' -a uninstall -d 'Remove the systemd unit.'
complete -c gpuq -n '__gpuq_options daemon uninstall' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group daemon' -a status -d 'Say whether the daemon runs, and with what.'
complete -c gpuq -n '__gpuq_options daemon status' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options daemon status' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_group daemon' -a logs -d 'Print the daemon\'s own log: every decision, and who asked for it.'
complete -c gpuq -n '__gpuq_options daemon logs' -s f -l follow -d 'Go on as it grows, until Ctrl-C'
complete -c gpuq -n '__gpuq_options daemon logs' -s n -d 'Only the last lines; on a terminal 200 by default' -x
complete -c gpuq -n '__gpuq_options daemon logs' -l json -d 'As it is kept: one JSON object per line'
complete -c gpuq -n '__gpuq_options daemon logs' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a doctor -d 'Check this machine, and say what to fix.'
complete -c gpuq -n '__gpuq_options doctor' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options doctor' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a config -d 'Show the settings, and where each comes from.'
complete -c gpuq -n '__gpuq_group config' -a show -d 'Show every setting: its value, and where that comes from: default, the file, or a variable.'
complete -c gpuq -n '__gpuq_options config show' -l json -d 'Print one JSON object, with a `schema`'
complete -c gpuq -n '__gpuq_options config show' -s h -l help -d 'Show the help.'
complete -c gpuq -n __gpuq_no_verb -a completion -d 'Print the completion script of a shell.'
complete -c gpuq -n '__gpuq_options completion' -s h -l help -d 'Show the help.'
complete -c gpuq -n '__gpuq_verb completion' -a 'bash zsh fish'
complete -c gpuq -n __gpuq_no_verb -a sim-job -d 'Allocate memory on a simulated GPU, to try things out.'
complete -c gpuq -n '__gpuq_options sim-job' -l vram -d 'Memory to allocate on each visible GPU' -x
complete -c gpuq -n '__gpuq_options sim-job' -l ramp -d 'Grow to it over this time; at once if not given' -x
complete -c gpuq -n '__gpuq_options sim-job' -l for -d 'End after this time' -x
complete -c gpuq -n '__gpuq_options sim-job' -s h -l help -d 'Show the help.'
