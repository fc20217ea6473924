-- The database of schema version 6 as gpuq 0.1.0 wrote it, with rows of every table; job 4 is suspended.
BEGIN TRANSACTION;
CREATE TABLE "attempts" (
   "job_id" INTEGER,
   "number" INTEGER,
   "started_at" REAL,
   "run_dir" TEXT,
   "log_path" TEXT,
   "ended_at" REAL,
   "exit_code" INTEGER,
   "signal" INTEGER,
   "failure" TEXT,
   "note" TEXT,
   "peak_ram" INTEGER,
   "user_seconds" REAL,
   "system_seconds" REAL,
   PRIMARY KEY ("job_id", "number")
);
INSERT INTO "attempts" VALUES(1,1,1767225700.0,'"/home/ada/.local/state/gpuq/host/jobs/1/1"','"/home/ada/.local/state/gpuq/host/jobs/1/1/log"',1767225710.0,0,NULL,NULL,NULL,123456789,1.5,0.25);
INSERT INTO "attempts" VALUES(2,1,1767225701.0,'"/home/ada/.local/state/gpuq/host/jobs/2/1"','"/home/ada/.local/state/gpuq/host/jobs/2/1/log"',1767225720.0,3,NULL,'exit','exit code 3',1,0.0,0.0);
INSERT INTO "attempts" VALUES(3,1,1767225702.0,'"/home/ada/.local/state/gpuq/host/jobs/3/1"','"/home/ada/.local/state/gpuq/host/jobs/3/1/log"',1767225730.0,1,NULL,'vram-oom','torch.cuda.OutOfMemoryError: CUDA out of memory.',5,NULL,NULL);
INSERT INTO "attempts" VALUES(4,1,1767225703.0,'"/home/ada/.local/state/gpuq/host/jobs/4/1"','"/home/ada/.local/state/gpuq/host/jobs/4/1/log"',1767225740.0,NULL,9,'signal','\udcff bytes',NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(4,2,1767225760.0,'"/home/ada/.local/state/gpuq/host/jobs/4/2"','"/home/ada/.local/state/gpuq/host/jobs/4/2/log"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(7,1,1767225761.0,'"/home/ada/.local/state/gpuq/host/jobs/7/1"','"/home/ada/.local/state/gpuq/host/jobs/7/1/log"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(12,1,1767225704.0,'"/home/ada/.local/state/gpuq/host/jobs/12/1"','"/home/ada/.local/state/gpuq/host/jobs/12/1/log"',1767225741.0,NULL,NULL,'lost','its supervisor vanished without a result',NULL,NULL,NULL);
CREATE TABLE "claims" (
   "job_id" INTEGER,
   "attempt" INTEGER,
   "uuid" TEXT,
   "bytes" INTEGER,
   "peak" INTEGER DEFAULT 0,
   PRIMARY KEY ("job_id", "attempt", "uuid")
);
INSERT INTO "claims" VALUES(1,1,'GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a',10737418240,9663676416);
INSERT INTO "claims" VALUES(2,1,'GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a',10737418240,9663676416);
INSERT INTO "claims" VALUES(3,1,'GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a',10737418240,12884901888);
INSERT INTO "claims" VALUES(4,1,'GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a',10737418240,9663676416);
INSERT INTO "claims" VALUES(4,2,'GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a',10737418240,9663676416);
INSERT INTO "claims" VALUES(12,1,'GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a',10737418240,9663676416);
CREATE TABLE "dependencies" (
   "job_id" INTEGER,
   "on_id" INTEGER,
   "condition" TEXT,
   "met" INTEGER DEFAULT 0,
   PRIMARY KEY ("job_id", "on_id", "condition")
);
INSERT INTO "dependencies" VALUES(6,7,'ok',0);
INSERT INTO "dependencies" VALUES(6,1,'any',1);
CREATE TABLE "environments" (
   "hash" TEXT PRIMARY KEY,
   "body" BLOB
);
INSERT INTO "environments" VALUES('eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',X'7B22484F4D45223A222F686F6D652F616461222C2258223A225C7530306539227D');
CREATE TABLE "events" (
   "id" INTEGER PRIMARY KEY,
   "at" REAL,
   "kind" TEXT,
   "job_id" INTEGER,
   "attempt" INTEGER,
   "data" TEXT
);
INSERT INTO "events" VALUES(1,1767225601.5,'submitted',1,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(2,1767225602.5,'submitted',2,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(3,1767225603.5,'submitted',3,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(4,1767225604.5,'submitted',4,NULL,'{"name":"na\u00efve \u2028 \u00fcn\u00efcode \ud83d\ude80"}');
INSERT INTO "events" VALUES(5,1767225605.5,'submitted',5,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(6,1767225606.5,'submitted',6,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(7,1767225607.5,'submitted',7,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(8,1767225608.5,'submitted',8,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(9,1767225609.5,'submitted',9,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(10,1767225610.5,'submitted',10,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(11,1767225611.5,'submitted',11,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(12,1767225612.5,'submitted',12,NULL,'{"name":"train"}');
INSERT INTO "events" VALUES(13,1767225700.0,'started',1,1,'{"gpus":["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]}');
INSERT INTO "events" VALUES(14,1767225710.0,'succeeded',1,1,'{"exit_code":0}');
INSERT INTO "events" VALUES(15,1767225701.0,'started',2,1,'{"gpus":["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]}');
INSERT INTO "events" VALUES(16,1767225720.0,'failed',2,1,'{"failure":"exit","exit_code":3,"note":"exit code 3"}');
INSERT INTO "events" VALUES(17,1767225702.0,'started',3,1,'{"gpus":["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]}');
INSERT INTO "events" VALUES(18,1767225730.0,'failed',3,1,'{"failure":"vram-oom","exit_code":1,"note":"torch.cuda.OutOfMemoryError: CUDA out of memory."}');
INSERT INTO "events" VALUES(19,1767225703.0,'started',4,1,'{"gpus":["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]}');
INSERT INTO "events" VALUES(20,1767225740.0,'failed',4,1,'{"failure":"signal","signal":9,"note":"\udcff bytes"}');
INSERT INTO "events" VALUES(21,1767225750.0,'retried',4,1,'{}');
INSERT INTO "events" VALUES(22,1767225760.0,'started',4,2,'{"gpus":["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]}');
INSERT INTO "events" VALUES(23,1767225705.0,'cancelled',8,NULL,'{}');
INSERT INTO "events" VALUES(24,1767225705.0,'skipped',11,NULL,'{"note":"depends on ok:2, which failed"}');
INSERT INTO "events" VALUES(25,1767225761.0,'started',7,1,'{"gpus":[]}');
INSERT INTO "events" VALUES(26,1767225762.0,'ending',7,1,'{"why":"cancel"}');
INSERT INTO "events" VALUES(27,1767225704.0,'started',12,1,'{"gpus":["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]}');
INSERT INTO "events" VALUES(28,1767225741.0,'failed',12,1,'{"failure":"lost","note":"its supervisor vanished without a result"}');
INSERT INTO "events" VALUES(29,1767225700.0,'daemon-started',NULL,NULL,'{"pid":4321}');
INSERT INTO "events" VALUES(30,1767225770.0,'gpu-lost',NULL,NULL,'{"gpu":"GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a","note":"fell off"}');
CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            owner INTEGER NOT NULL,
            state TEXT NOT NULL,
            command TEXT NOT NULL,
            cwd TEXT NOT NULL,
            gpus_asked INTEGER NOT NULL,
            vram INTEGER,
            cpus INTEGER NOT NULL,
            ram INTEGER NOT NULL,
            env_hash TEXT NOT NULL,
            submitted_at REAL NOT NULL,
            priority INTEGER NOT NULL,
            time_limit REAL,
            begin_at REAL,
            after TEXT NOT NULL,
            tags TEXT NOT NULL,
            array_id INTEGER,
            array_index INTEGER,
            array_limit INTEGER,
            umask INTEGER NOT NULL,
            limits TEXT NOT NULL,
            output TEXT,
            attempt INTEGER NOT NULL,
            gpus TEXT NOT NULL,
            started_at REAL,
            ended_at REAL,
            exit_code INTEGER,
            signal INTEGER,
            failure TEXT,
            note TEXT,
            ending TEXT,
            peak_vram INTEGER,
            peak_ram INTEGER,
            log_path TEXT
        , grace REAL, early_signal INTEGER, early_seconds REAL, log_limit INTEGER, retry TEXT NOT NULL DEFAULT '[]', spent TEXT NOT NULL DEFAULT '[]', suspended_at REAL, suspended_seconds REAL NOT NULL DEFAULT 0);
INSERT INTO "jobs" VALUES(1,'train',1000,'succeeded','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225601.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,1,'["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]',1767225700.0,1767225710.0,0,NULL,NULL,NULL,NULL,9663676416,123456789,'"/home/ada/.local/state/gpuq/host/jobs/1/1/log"',NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(2,'train',1000,'failed','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225602.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,1,'["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]',1767225701.0,1767225720.0,3,NULL,'exit','exit code 3',NULL,9663676416,1,'"/home/ada/.local/state/gpuq/host/jobs/2/1/log"',NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(3,'train',1000,'failed','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225603.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,1,'["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]',1767225702.0,1767225730.0,1,NULL,'vram-oom','torch.cuda.OutOfMemoryError: CUDA out of memory.',NULL,12884901888,5,'"/home/ada/.local/state/gpuq/host/jobs/3/1/log"',NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(4,'naïve   ünïcode 🚀',1000,'suspended','["echo","\udcff\udc80","a\nb","","''\"\\"]','"/home/ada/\udce9t\u00e9"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225604.5,0,NULL,NULL,'[]','["sweep","gr\u00f6\u00dfe"]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]','"/home/ada/out-\udcff.log"',2,'["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]',1767225760.0,NULL,NULL,NULL,NULL,NULL,NULL,9663676416,NULL,'"/home/ada/.local/state/gpuq/host/jobs/4/2/log"',120.0,10,300.0,1048576,'[[["vram-oom"],2,1.5],[[],1,1.0]]','[1,0]',1767225900.0,2.5);
INSERT INTO "jobs" VALUES(5,'train',1000,'held','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225605.5,7,3600.0,1893456000.0,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,0,'[]',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(6,'train',1000,'queued','["python","train.py","--lr","0.1"]','"/home/ada/work"',2,NULL,0,68719476736,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225606.5,0,NULL,NULL,'["ok:7","any:1"]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,0,'[]',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(7,'train',1000,'running','["python","train.py","--lr","0.1"]','"/home/ada/work"',0,NULL,4,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225607.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,1,'[]',1767225761.0,NULL,NULL,NULL,NULL,NULL,'cancel',NULL,NULL,'"/home/ada/.local/state/gpuq/host/jobs/7/1/log"',NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(8,'train',1000,'cancelled','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225608.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,0,'[]',NULL,1767225705.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(9,'train',1000,'queued','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225609.5,0,NULL,NULL,'[]','[]',9,0,2,18,'[[7,1024],[8,-1]]',NULL,0,'[]',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(10,'train',1000,'queued','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225610.5,0,NULL,NULL,'[]','[]',9,5,2,18,'[[7,1024],[8,-1]]',NULL,0,'[]',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(11,'train',1000,'skipped','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225611.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,0,'[]',NULL,1767225705.0,NULL,NULL,NULL,'depends on ok:2, which failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
INSERT INTO "jobs" VALUES(12,'train',1000,'failed','["python","train.py","--lr","0.1"]','"/home/ada/work"',1,10737418240,0,0,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1767225612.5,0,NULL,NULL,'[]','[]',NULL,NULL,NULL,18,'[[7,1024],[8,-1]]',NULL,1,'["GPU-8f5c2f0e-3f6a-4a7e-9d1c-1f2e3d4c5b6a"]',1767225704.0,1767225741.0,NULL,NULL,'lost','its supervisor vanished without a result',NULL,9663676416,NULL,'"/home/ada/.local/state/gpuq/host/jobs/12/1/log"',NULL,NULL,NULL,NULL,'[]','[]',NULL,0.0);
CREATE TABLE "submissions" (
   "key" TEXT PRIMARY KEY,
   "first_id" INTEGER,
   "last_id" INTEGER
);
INSERT INTO "submissions" VALUES('0123456789abcdef',1,12);
CREATE INDEX jobs_live ON jobs (state, id) WHERE ended_at IS NULL;
CREATE INDEX jobs_env ON jobs (env_hash, ended_at);
CREATE INDEX attempts_live ON attempts (job_id) WHERE ended_at IS NULL;
CREATE INDEX dependencies_open ON dependencies (on_id) WHERE met = 0;
CREATE INDEX events_job ON events (job_id, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',40);
COMMIT;
PRAGMA user_version = 6;
