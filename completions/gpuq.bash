# Made by `gpuq completion bash`; not to be edited.

# Sets verb, and sub for a group; at is the index of the first word after them.
_gpuq_parse() {
    verb= sub= at=1
    while ((at < COMP_CWORD)) && [[ ${COMP_WORDS[at]} == -* ]]; do ((at++)); done
    ((at < COMP_CWORD)) || return
    verb=${COMP_WORDS[at++]}
    case $verb in
        gpus | queue | group | db | daemon | config)
            ((at < COMP_CWORD)) && sub=${COMP_WORDS[at++]}
            ;;
    esac
}

# The index of the first word of the command that is submitted, or 0 while options are being typed.
_gpuq_command() {
    local i=$at
    while ((i <= COMP_CWORD)); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then
            ((i < COMP_CWORD)) && echo $((i + 1)) || echo 0
            return
        elif [[ ${COMP_WORDS[i]} != -* ]]; then
            echo "$i"
            return
        elif [[ ${COMP_WORDS[i + 1]-} == = ]]; then
            ((i += 3))
        elif [[ " $values " == *" ${COMP_WORDS[i]} "* ]]; then
            ((i += 2))
        else
            ((i++))
        fi
        # `ok:12` arrives as three words
        while [[ ${COMP_WORDS[i]-} == : ]]; do ((i += 2)); done
    done
    echo 0
}

_gpuq_ids() {
    COMPREPLY=($(compgen -W "@last $(gpuq complete-ids "$1" 2>/dev/null | cut -f1)" -- "$cur"))
    compopt -o nosort 2>/dev/null
}

_gpuq() {
    local cur=${COMP_WORDS[COMP_CWORD]} verb sub at options values argument start first=$COMP_CWORD previous
    COMPREPLY=()
    _gpuq_parse
    case "$verb${sub:+ $sub}" in
        "")
            options="-h --help --version"
            values=""
            argument="words:submit run edit cancel hold release suspend resume retry wait list show why logs gpus top events stats simulate queue group prune db daemon doctor config completion sim-job"
            ;;
        "submit")
            options="--from -a --array -J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu --spread -c --cpus --ram -t --time -p --priority -d --after -b --begin -H --hold --tag -D --cwd --env --export -o --output --signal --grace --log-limit --retry --requeue --preemptible --queue --group --stop-after --json -q --quiet -h --help"
            values="--from -a --array -J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu -c --cpus --ram -t --time -p --priority -d --after -b --begin --tag -D --cwd --env --export -o --output --signal --grace --log-limit --retry --queue --group --stop-after"
            argument="command"
            ;;
        "run")
            options="-J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu --spread -c --cpus --ram -t --time -p --priority -d --after -b --begin -H --hold --tag -D --cwd --env --export -o --output --signal --grace --log-limit --retry --requeue --preemptible --queue --group --stop-after -h --help"
            values="-J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu -c --cpus --ram -t --time -p --priority -d --after -b --begin --tag -D --cwd --env --export -o --output --signal --grace --log-limit --retry --queue --group --stop-after"
            argument="command"
            ;;
        "edit")
            options="-J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu --spread -c --cpus --ram -t --time -p --priority --queue -d --after -b --begin --tag --group --stop-after --json -q --quiet -h --help"
            values="-J --name -g --gpus --vram --gpu-type --gpu-min-memory --gpu-id --exclude-gpu -c --cpus --ram -t --time -p --priority --queue -d --after -b --begin --tag --group --stop-after"
            argument="ids:waiting"
            ;;
        "cancel")
            options="--state --tag --group --json -q --quiet -h --help"
            values="--state --tag --group"
            argument="ids:live"
            ;;
        "hold")
            options="--state --tag --group --json -q --quiet -h --help"
            values="--state --tag --group"
            argument="ids:queued"
            ;;
        "release")
            options="--state --tag --group --json -q --quiet -h --help"
            values="--state --tag --group"
            argument="ids:held"
            ;;
        "suspend")
            options="--state --tag --group --json -q --quiet -h --help"
            values="--state --tag --group"
            argument="ids:running"
            ;;
        "resume")
            options="--state --tag --group --json -q --quiet -h --help"
            values="--state --tag --group"
            argument="ids:suspended"
            ;;
        "retry")
            options="--state --tag --group --json -q --quiet -h --help"
            values="--state --tag --group"
            argument="ids:ended"
            ;;
        "wait")
            options="--state --tag --group --any --timeout --json -q --quiet -h --help"
            values="--state --tag --group --timeout"
            argument="ids:live"
            ;;
        "list")
            options="-a --all --state --tag --group -n --start --json -q --quiet -h --help"
            values="--state --tag --group -n"
            argument="ids:all"
            ;;
        "show")
            options="--state --tag --group --json -h --help"
            values="--state --tag --group"
            argument="ids:all"
            ;;
        "why")
            options="--state --tag --group --json -h --help"
            values="--state --tag --group"
            argument="ids:all"
            ;;
        "logs")
            options="-f --follow -n --attempt -h --help"
            values="-n --attempt"
            argument="ids:all"
            ;;
        "gpus")
            options="--json -h --help"
            values=""
            argument="words:disable enable"
            ;;
        "gpus disable")
            options="--why --json -h --help"
            values="--why"
            argument=""
            ;;
        "gpus enable")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "top")
            options="--once --svg --json -h --help"
            values="--svg"
            argument=""
            ;;
        "events")
            options="--state --tag --group -f --follow -n --json -h --help"
            values="--state --tag --group -n"
            argument="ids:all"
            ;;
        "stats")
            options="--since --json -h --help"
            values="--since"
            argument=""
            ;;
        "simulate")
            options="--policy -g --gpus --what-if --since --until --gantt --jobs --json -h --help"
            values="--policy -g --gpus --what-if --since --until"
            argument="files"
            ;;
        "queue")
            options=""
            values=""
            argument="words:list set pause drain resume remove"
            ;;
        "queue list")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "queue set")
            options="-p --priority --gpus --default-time --max-time --max-jobs --max-gpus --json -h --help"
            values="-p --priority --gpus --default-time --max-time --max-jobs --max-gpus"
            argument=""
            ;;
        "queue pause")
            options="--why --json -h --help"
            values="--why"
            argument=""
            ;;
        "queue drain")
            options="--why --json -h --help"
            values="--why"
            argument=""
            ;;
        "queue resume")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "queue remove")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "group")
            options=""
            values=""
            argument="words:list resume"
            ;;
        "group list")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "group resume")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "prune")
            options="--older --larger --state --tag --group --all --logs-only --dry-run -y --yes --json -q --quiet -h --help"
            values="--older --larger --state --tag --group"
            argument="ids:all"
            ;;
        "db")
            options=""
            values=""
            argument="words:check backup restore"
            ;;
        "db check")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "db backup")
            options="--force --json -h --help"
            values=""
            argument="files"
            ;;
        "db restore")
            options="-y --yes --json -h --help"
            values=""
            argument="files"
            ;;
        "daemon")
            options=""
            values=""
            argument="words:start stop restart install uninstall status logs"
            ;;
        "daemon start")
            options="-h --help"
            values=""
            argument=""
            ;;
        "daemon stop")
            options="--jobs -h --help"
            values=""
            argument=""
            ;;
        "daemon restart")
            options="-h --help"
            values=""
            argument=""
            ;;
        "daemon install")
            options="--print -h --help"
            values=""
            argument=""
            ;;
        "daemon uninstall")
            options="-h --help"
            values=""
            argument=""
            ;;
        "daemon status")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "daemon logs")
            options="-f --follow -n --json -h --help"
            values="-n"
            argument=""
            ;;
        "doctor")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "config")
            options=""
            values=""
            argument="words:show"
            ;;
        "config show")
            options="--json -h --help"
            values=""
            argument=""
            ;;
        "completion")
            options="-h --help"
            values=""
            argument="shells"
            ;;
        "sim-job")
            options="--vram --ramp --for -h --help"
            values="--vram --ramp --for"
            argument=""
            ;;
    esac
    if [[ $argument == command ]]; then
        start=$(_gpuq_command)
        if ((start > 0)); then
            if declare -F _command_offset >/dev/null; then
                _command_offset "$start"
            elif ((start == COMP_CWORD)); then
                COMPREPLY=($(compgen -c -- "$cur"))
                compopt -o default 2>/dev/null
            else
                compopt -o default 2>/dev/null
            fi
            return
        fi
    fi
    # bash splits words at = and :, so that `--state=run` and `ok:1` are three words
    [[ $cur == [=:] ]] && cur=
    while ((first > 1)) && [[ ${COMP_WORDS[first]} == [=:] || ${COMP_WORDS[first - 1]} == [=:] ]]; do ((first--)); done
    previous=${COMP_WORDS[first - 1]}
    ((first < COMP_CWORD)) && [[ ${COMP_WORDS[first]} == -* ]] && previous=${COMP_WORDS[first]}
    if [[ " $values " == *" $previous "* ]]; then
        case $verb:$previous in
            submit:--from) compopt -o default 2>/dev/null ;;
            submit:-d | submit:--after) _gpuq_ids all ;;
            submit:-D | submit:--cwd) compopt -o default -o dirnames 2>/dev/null; COMPREPLY=($(compgen -d -- "$cur")) ;;
            submit:-o | submit:--output) compopt -o default 2>/dev/null ;;
            run:-d | run:--after) _gpuq_ids all ;;
            run:-D | run:--cwd) compopt -o default -o dirnames 2>/dev/null; COMPREPLY=($(compgen -d -- "$cur")) ;;
            run:-o | run:--output) compopt -o default 2>/dev/null ;;
            edit:-d | edit:--after) _gpuq_ids all ;;
            cancel:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            hold:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            release:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            suspend:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            resume:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            retry:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            wait:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            list:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            show:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            why:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            top:--svg) compopt -o default 2>/dev/null ;;
            events:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
            prune:--state) COMPREPLY=($(compgen -W "held queued running suspended succeeded failed cancelled skipped" -- "$cur")) ;;
        esac
        return
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    case $argument in
        ids:*) _gpuq_ids "${argument#ids:}" ;;
        shells) COMPREPLY=($(compgen -W "bash zsh fish" -- "$cur")) ;;
        files) compopt -o default 2>/dev/null ;;
        words:*) COMPREPLY=($(compgen -W "${argument#words:}" -- "$cur")) ;;
    esac
}

complete -F _gpuq gpuq
